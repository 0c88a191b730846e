# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of public SAEs, one format a file; docs/import.md is their table."""

from vllm_sauce.sae.formats.checkpoint import Checkpoint, read_checkpoint
from vllm_sauce.sae.formats.conversion import LoadOptions
from vllm_sauce.sae.formats.registry import (
    FORMATS,
    ForeignSAE,
    detect_format,
    load_foreign,
)

__all__ = [
    "FORMATS",
    "Checkpoint",
    "ForeignSAE",
    "LoadOptions",
    "detect_format",
    "load_foreign",
    "read_checkpoint",
]
