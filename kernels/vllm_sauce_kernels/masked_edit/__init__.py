# SPDX-License-Identifier: Apache-2.0
"""Edit each token's masked latents in place, one mask a slot.

With ``x = float32(hidden_states) + float32(residual)``, ``sae_in, out = normalize(x)``
and ``j`` over the first ``mask_len[slot]`` latents of the token's slot::

    hidden_pre_j = sae_in . W_enc_rows[j] + b_enc[j]
    change       = sum_j [hidden_pre_j > gate_j and ranks(j)]
                         out * (scale_j * hidden_pre_j + shift_j) * W_dec_rows[j]
    hidden_states += change           (added in float32, rounded once)

``normalize`` is what SAELens does at run time, by number, with the unbiased standard
deviation and norm' = norm / sqrt(d_model)::

    0  none                   sae_in = x                          out = 1
    1  layer_norm             sae_in = (x - mean) / (std + 1e-5)  out = std
    2  constant_norm_rescale  sae_in = x / norm'                  out = norm'

``topk = 0``: every latent ranks. ``topk = k``: latent j ranks if fewer than k of the
whole dictionary have a larger ``hidden_pre``, or an equal one and a lower row number;
torch.topk may choose so, too. ``W_enc_rows`` and ``b_enc`` then hold the dictionary,
and first the rows of ``W_dec_rows``.

Shapes, the same in every form of the op:
    hidden_states  [num_tokens, d_model] any float dtype, rows may be strided; mutated
    residual       [num_tokens, d_model] any float dtype, or None
    slot_of_token  [>= num_tokens] int32, -1 = none; the first num_tokens count
    mask_latents   [num_slots, max_latents] int32, rows of the pool
    mask_scale     [num_slots, max_latents] float32, gamma - 1
    mask_shift     [num_slots, max_latents] float32, v
    mask_gate      [num_slots, max_latents] float32, edits where hidden_pre > gate
    mask_len       [num_slots] int32; table entries beyond it are never read
    W_enc_rows     [num_rows, d_model] rows of the encoder's transpose
    W_dec_rows     [num_pool, d_model]; num_rows = num_pool unless topk
    b_enc          [num_rows] float32
    edited_tokens  [num_slots] int64, += tokens processed with that slot; mutated
    topk           int, 0 or k
    normalize      int, 0, 1 or 2
    plan           None, or which tokens go together (plan.py); CPU forms ignore it
"""

from vllm_sauce_kernels.masked_edit.dispatch import (
    kernel_choice,
    masked_edit,
    masked_edit_triton,
)
from vllm_sauce_kernels.masked_edit.eager import masked_edit_eager
from vllm_sauce_kernels.masked_edit.plan import plan_of, plan_size, write_plan
from vllm_sauce_kernels.masked_edit.reference import masked_edit_ref

__all__ = [
    "kernel_choice",
    "masked_edit",
    "masked_edit_eager",
    "masked_edit_ref",
    "masked_edit_triton",
    "plan_of",
    "plan_size",
    "write_plan",
]
