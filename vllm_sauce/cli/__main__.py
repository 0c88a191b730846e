# SPDX-License-Identifier: Apache-2.0
"""``python -m vllm_sauce.cli`` is the ``sauce`` command."""

from vllm_sauce.cli.app import app

if __name__ == "__main__":
    app()
