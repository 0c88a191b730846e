# SPDX-License-Identifier: Apache-2.0
"""The full encode, edit, decode of the paper: the oracle of the served edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from vllm_sauce.sae.weights import SAEWeights


class LatentEdits(Protocol):
    """Edits of distinct latents: ``z' = gamma * z + shift`` where z > gate."""

    @property
    def latents(self) -> Sequence[int]: ...
    @property
    def gamma(self) -> Sequence[float]: ...
    @property
    def shift(self) -> Sequence[float]: ...
    @property
    def gate(self) -> Sequence[float]: ...


def edit_latents(latent_acts: Tensor, edits: LatentEdits) -> Tensor:
    """Return a copy of the activations with the edits applied.

    Shapes: latent_acts [..., d_sae] -> [..., d_sae] float32
    """
    edited = latent_acts.float().clone()
    rows = torch.tensor(list(edits.latents), device=edited.device)
    gamma, shift, gate = (
        torch.tensor(list(values), dtype=torch.float32, device=edited.device)
        for values in (edits.gamma, edits.shift, edits.gate)
    )
    acts = edited[..., rows]
    edited[..., rows] = torch.where(acts > gate, gamma * acts + shift, acts)
    return edited


def reconstruct(
    sae: SAEWeights,
    x: Tensor,
    edits: LatentEdits | None,
    *,
    drop_error: bool = False,
) -> Tensor:
    """Return x after encoding, editing and decoding, plus what the SAE cannot explain.

    With ``drop_error`` the decoded latents replace x, as in the paper.

    Shapes: x [..., d_model] -> [..., d_model] float32
    Source: SAUCE (arXiv:2503.14530)
    """
    acts = sae.encode(x)
    edited = acts if edits is None else edit_latents(acts, edits)
    decoded = sae.decode(edited, x)
    return decoded if drop_error else decoded + (x.float() - sae.decode(acts, x))
