# SPDX-License-Identifier: Apache-2.0
"""A file in parts is the library's file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save

from vllm_sauce.sae.tensors_file import file_parts

SHAPES = {"W_enc": (6, 17), "W_dec": (17, 6), "b_enc": (17,), "b_dec": (6,), "é": ()}


@pytest.mark.parametrize("kept", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("odd", ["float32", "bfloat16", "float16"])
def test_parts_are_the_bytes_that_safetensors_writes(kept: str, odd: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(shape, generator=generator).to(
            getattr(torch, odd if name in ("b_enc", "é") else kept)
        )
        for name, shape in SHAPES.items()
    }
    assert b"".join(file_parts(tensors)) == save(tensors)
    assert b"".join(file_parts({})) == save({})


def test_no_part_is_a_copy() -> None:
    tensor = torch.zeros(8, 4)
    *_, part = file_parts({"one": tensor})
    tensor[0, 0] = 1.0
    assert bytes(part) == tensor.numpy().tobytes()
