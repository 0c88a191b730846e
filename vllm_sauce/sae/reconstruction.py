# SPDX-License-Identifier: Apache-2.0
"""The full encode, edit, decode of the paper: the oracle of the served edit."""

from __future__ import annotations

import torch
from torch import Tensor

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.sae.weights import SAEWeights


def reconstruct(sae: SAEWeights, x: Tensor, edit: SiteEdit) -> Tensor:
    """Return x after encoding, editing and decoding, plus what the SAE cannot explain.

    Shapes: x [..., d_model] -> [..., d_model] float32
    Source: SAUCE (arXiv:2503.14530), which leaves out what the SAE cannot explain
    """
    acts = sae.encode(x)
    rows = torch.tensor(edit.latents, device=acts.device)
    gamma, shift, gate = (
        torch.tensor(values, dtype=torch.float32, device=acts.device)
        for values in (edit.gamma, edit.shift, edit.gate)
    )
    mine = acts[..., rows]
    edited = acts.clone()
    edited[..., rows] = torch.where(mine > gate, gamma * mine + shift, mine)
    return sae.decode(edited, x) + (x.float() - sae.decode(acts, x))
