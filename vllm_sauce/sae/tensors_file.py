# SPDX-License-Identifier: Apache-2.0
"""Tensors of a safetensors file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vllm_sauce.errors import BundleCorruptError, BundleNotFoundError
from vllm_sauce.files import refuse_pointer

_TYPES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""In the order that safetensors writes them in, by name within a type."""


def file_parts(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Yield a file's bytes in parts, the tensors' own memory among them.

    ``safetensors.torch.save`` returns the same bytes, as one more copy of it all.

    Shapes: contiguous tensors of any, on the CPU
    """
    ranks = list(_TYPES)
    order = sorted(tensors, key=lambda name: (ranks.index(tensors[name].dtype), name))
    header: dict[str, Any] = {}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in order:
        yield tensors[name].flatten().view(torch.uint8).numpy().data


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write contiguous tensors into a new file. Raises: OSError"""
    with path.open("wb") as file:
        file.writelines(file_parts(tensors))


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
