# SPDX-License-Identifier: Apache-2.0
"""Edit each token's masked latents in place, one mask a slot.

With ``x = float32(hidden_states) + float32(residual)`` and ``j`` over the first
``mask_len[slot]`` latents of the token's slot::

    hidden_pre_j = x . W_enc_rows[j] + b_enc[j]
    change       = sum_j [hidden_pre_j > gate_j]
                         (scale_j * hidden_pre_j + shift_j) * W_dec_rows[j]
    hidden_states += change           (added in float32, rounded once)

Shapes, the same in every form of the op:
    hidden_states  [num_tokens, d_model] any float dtype, rows may be strided; mutated
    residual       [num_tokens, d_model] any float dtype, or None
    slot_of_token  [>= num_tokens] int32, -1 = none; the first num_tokens count
    mask_latents   [num_slots, max_latents] int32, rows of the pool
    mask_scale     [num_slots, max_latents] float32, gamma - 1
    mask_shift     [num_slots, max_latents] float32, v
    mask_gate      [num_slots, max_latents] float32, edits where hidden_pre > gate
    mask_len       [num_slots] int32; table entries beyond it are never read
    W_enc_rows     [num_pool, d_model] rows of the encoder's transpose
    W_dec_rows     [num_pool, d_model]
    b_enc          [num_pool] float32
    edited_tokens  [num_slots] int64, += tokens processed with that slot; mutated
"""

from vllm_sauce_kernels.masked_edit.dispatch import (
    check_arguments,
    masked_edit,
    masked_edit_triton,
)
from vllm_sauce_kernels.masked_edit.eager import masked_edit_eager
from vllm_sauce_kernels.masked_edit.reference import masked_edit_ref

__all__ = [
    "check_arguments",
    "masked_edit",
    "masked_edit_eager",
    "masked_edit_ref",
    "masked_edit_triton",
]
