# SPDX-License-Identifier: Apache-2.0
"""The custom op ``vllm_sauce::masked_edit``: Triton on GPUs, C++ or PyTorch on CPUs.

On CPUs ``VLLM_SAUCE_KERNEL=eager`` takes the PyTorch form whatever the batch, and
``triton`` the Triton form, which needs its interpreter (``TRITON_INTERPRET=1``). Both
are for tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vllm_sauce_kernels.masked_edit.eager import masked_edit_eager
from vllm_sauce_kernels.masked_edit.plan import plan_size
from vllm_sauce_kernels.masked_edit.reference import Arguments

_SCHEMA = (
    "(Tensor(a!) hidden_states, Tensor? residual, Tensor slot_of_token, "
    "Tensor mask_latents, Tensor mask_scale, Tensor mask_shift, Tensor mask_gate, "
    "Tensor mask_len, Tensor W_enc_rows, Tensor W_dec_rows, Tensor b_enc, "
    "Tensor(b!) edited_tokens, int topk=0, int normalize=0, Tensor? plan=None) -> ()"
)

# define + impl instead of custom_op, whose Python wrapper costs more than an idle op.
torch.library.define("vllm_sauce::masked_edit", _SCHEMA)


def kernel_choice() -> str | None:
    """Return the form that ``VLLM_SAUCE_KERNEL`` asks for, None for the device's."""
    return os.environ.get("VLLM_SAUCE_KERNEL")


masked_edit: Callable[..., None] = torch.ops.vllm_sauce.masked_edit.default
"""Edits ``hidden_states`` in place; opaque to torch.compile.

Takes ``Arguments``, whose shapes are in the package's docstring.
Raises: ValueError where an argument has the wrong shape, dtype or strides
"""


# Not under "CPU": that key is native.cpp's, which calls this for what it does not take.
@torch.library.impl("vllm_sauce::masked_edit", "CompositeExplicitAutograd")
def _on_cpu(*args: Any) -> None:
    if kernel_choice() == "triton":
        masked_edit_triton(*args)
    else:
        check_arguments(Arguments(*args))
        masked_edit_eager(*args)


# ROCm devices answer to the CUDA key, too.
@torch.library.impl("vllm_sauce::masked_edit", "CUDA")
def _on_gpu(*args: Any) -> None:
    masked_edit_triton(*args)


@torch.library.register_fake("vllm_sauce::masked_edit")  # type: ignore[untyped-decorator]
def _fake(*args: Any) -> None:
    # No checks here: comparing symbolic sizes would put guards on the model's graph.
    return None


def masked_edit_triton(*args: Any, **kwargs: Any) -> None:
    """As ``masked_edit``, with the Triton form whatever the device."""
    op = Arguments(*args, **kwargs)
    check_arguments(op)
    # Machines without a GPU may lack Triton.
    from vllm_sauce_kernels.masked_edit import kernel

    kernel.launch(op)


def check_arguments(op: Arguments) -> None:
    """Check shapes, dtypes and strides; reads no tensor's values. Raises: ValueError"""
    latents, W_enc_rows, slots = op.mask_latents, op.W_enc_rows, op.slot_of_token
    if latents.ndim != 2 or W_enc_rows.ndim != 2:
        raise ValueError(
            "mask_latents and W_enc_rows must have two dimensions, got "
            f"{list(latents.shape)}, {list(W_enc_rows.shape)}"
        )
    num_slots, (num_rows, d_model) = len(latents), W_enc_rows.shape
    # With TopK the encoder holds the whole dictionary, the decoder what is edited.
    num_pool = min(len(op.W_dec_rows), num_rows) if op.topk > 0 else num_rows
    _check_rows("W_enc_rows", W_enc_rows, (num_rows, d_model))
    _check_rows("W_dec_rows", op.W_dec_rows, (num_pool, d_model))
    _check_flat("mask_latents", latents, latents.shape, torch.int32)
    for name in ("mask_scale", "mask_shift", "mask_gate"):
        _check_flat(name, getattr(op, name), latents.shape, torch.float32)
    _check_flat("mask_len", op.mask_len, (num_slots,), torch.int32)
    _check_flat("b_enc", op.b_enc, (num_rows,), torch.float32)
    _check_flat("edited_tokens", op.edited_tokens, (num_slots,), torch.int64)
    _check_kind(op.topk, op.normalize)
    if op.hidden_states.ndim != 2:
        raise ValueError(
            "hidden_states must have two dimensions, got "
            f"{list(op.hidden_states.shape)}"
        )
    shape = (len(op.hidden_states), d_model)
    _check_rows("hidden_states", op.hidden_states, shape)
    if op.residual is not None:
        _check_rows("residual", op.residual, shape)
    if slots.ndim != 1 or slots.shape[0] < shape[0]:
        raise ValueError(
            f"slot_of_token must be [>= num_tokens={shape[0]}], got {list(slots.shape)}"
        )
    _check_flat("slot_of_token", slots, slots.shape, torch.int32)
    if op.plan is not None:
        size = plan_size(len(slots), num_slots)
        _check_flat("plan", op.plan, (size,), torch.int32)


def _check_kind(topk: int, normalize: int) -> None:
    if topk < 0:
        raise ValueError(f"topk must be 0 (off) or a number of latents, got {topk}")
    if normalize not in (0, 1, 2):
        raise ValueError(
            "normalize must be 0 (none), 1 (layer_norm) or 2 (constant_norm_rescale), "
            f"got {normalize}"
        )


def _check_rows(name: str, rows: Tensor, shape: tuple[int, int]) -> None:
    if rows.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, got {list(rows.shape)}")
    if not rows.dtype.is_floating_point:
        raise ValueError(f"{name} must have a float dtype, got {rows.dtype}")
    if shape[1] > 1 and rows.stride(1) != 1:
        raise ValueError(f"{name} must have stride(1) == 1, got {rows.stride()}")


def _check_flat(
    name: str, flat: Tensor, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if flat.shape != shape or flat.dtype != dtype or not flat.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous {list(shape)} {dtype}, "
            f"got {list(flat.shape)} {flat.dtype} with strides {flat.stride()}"
        )
