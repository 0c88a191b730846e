# SPDX-License-Identifier: Apache-2.0
"""Rows in fp8: e4m3 with a scale each, which the op never sees.

A row's scale folds into what belongs to its latent: with W = s q, z > gate is
q·x + b/s > gate/s, and the change is scaled by s and by the decoder row's scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_sauce.errors import ConfigError

FP8 = torch.float8_e4m3fn


def quantize_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows in e4m3 and the scale of each: rows ≈ scale * quantized.

    Shapes: [num_rows, d_model] -> [num_rows, d_model] e4m3, [num_rows] float32
    """
    largest = rows.float().abs().amax(1)
    scale = torch.where(largest > 0, largest / torch.finfo(FP8).max, 1.0)
    return (rows.float() / scale[:, None]).to(FP8), scale


def check_device(device: torch.device) -> None:
    """Refuse GPUs that cannot read e4m3fn. Raises: ConfigError"""
    if device.type != "cuda":
        return
    name = torch.cuda.get_device_name(device)
    if torch.version.hip or torch.cuda.get_device_capability(device) < (8, 9):
        raise ConfigError(
            f"pool_dtype 'fp8' needs an NVIDIA GPU of compute capability 8.9 or newer, "
            f"got {name}; use pool_dtype 'auto'"
        )
