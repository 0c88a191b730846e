# SPDX-License-Identifier: Apache-2.0
"""Tensors of a safetensors file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vllm_sauce.errors import BundleCorruptError, BundleNotFoundError
from vllm_sauce.files import refuse_pointer


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name.

    Raises: BundleNotFoundError, BundleCorruptError
    """
    try:
        refuse_pointer(path)
        return load_file(path)
    except FileNotFoundError:
        raise BundleNotFoundError(f"no SAE here: {path} is missing") from None
    except SafetensorError as error:
        raise BundleCorruptError(f"{path} is damaged: {error}") from error
