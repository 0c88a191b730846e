# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of public SAEs, one format a file; docs/import.md is their table."""

from vllm_sauce.sae.formats.checkpoint import read_checkpoint
from vllm_sauce.sae.formats.conversion import LoadOptions
from vllm_sauce.sae.formats.registry import FORMATS, ForeignSAE, load_foreign

__all__ = [
    "FORMATS",
    "ForeignSAE",
    "LoadOptions",
    "load_foreign",
    "read_checkpoint",
]
