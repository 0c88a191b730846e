# SPDX-License-Identifier: Apache-2.0
"""The ``sauce`` command."""

from vllm_sauce.cli.app import app

__all__ = ["app"]
