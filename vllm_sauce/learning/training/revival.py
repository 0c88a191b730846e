# SPDX-License-Identifier: Apache-2.0
"""Give latents that never fire what the others leave unexplained.

Source: dead neurons are drawn anew from badly reconstructed rows, as in Bricken et al.,
"Towards Monosemanticity" (2023). Here this comes last, and only they learn: what the
others do stays the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor, nn

from vllm_sauce.learning.training.settings import SAETraining
from vllm_sauce.sae import SAEWeights

ROUNDS: Final = 6
"""A latent that hardly fires after its training is drawn again under half the penalty:
the others were trained until nothing was left that is worth a whole one."""

HARDLY: Final = 5e-4
"""Share of rows below which a latent hardly fires. The field calls latents below 1e-5
or so of no use; one of this many is seen on a held-out sample of some thousand rows."""

FIRST_DENSITY: Final = 0.01
"""Share of rows that a latent fires on when it is drawn."""

DRAWN_FROM: Final = 16_384
"""Rows that new directions are drawn from, at least."""


@dataclass(frozen=True, slots=True)
class Revived:
    """The SAE and what became of its latents."""

    weights: SAEWeights
    dead_before: int
    dead_after: int


def revive(
    sae: SAEWeights, batches: Iterator[Tensor], training: SAETraining, scale: float
) -> Revived:
    """Train the dead latents of a ReLU SAE on what the others do not explain.

    Decoder rows have unit norm, before and after. ``scale`` makes the activations' mean
    squared norm d_model, which the penalty is for.

    Shapes: batches [batch_tokens, d_model] each
    """
    assert sae.architecture == "standard" and sae.normalize_activations == "none"
    window = training.dead_window
    density = firing_density(sae, batches, window)
    weak = dead = torch.nonzero(density == 0).flatten()
    for number in range(ROUNDS if training.steps_of_revival else 0):
        if not len(weak):
            break
        sae = _trained(sae, weak, batches, training, scale, number)
        # An SAE of some of the latents is quicker to encode with.
        columns, bias = sae.W_enc[:, weak], sae.b_enc[weak]
        only = replace(sae, W_enc=columns, W_dec=sae.W_dec[weak], b_enc=bias)
        density[weak] = firing_density(only, batches, window)
        weak = dead[density[dead] < HARDLY]
    return Revived(sae, len(dead), int((density == 0).sum()))


@torch.no_grad()
def firing_density(sae: SAEWeights, batches: Iterator[Tensor], window: int) -> Tensor:
    """Return the share of some batches' rows that each latent fires on.

    Shapes: batches [batch_tokens, d_model] each -> [d_sae]
    """
    device = sae.W_enc.device
    fired, rows = torch.zeros(sae.d_sae, dtype=torch.float64, device=device), 0
    for _ in range(window):
        batch = next(batches).to(device)
        fired += (sae.encode(batch) > 0).sum(0)
        rows += len(batch)
    return fired / rows


class _DeadOnes(nn.Module):
    """The latents that learn: from an activation to what the others leave of it."""

    def __init__(self, directions: Tensor, sae_in: Tensor) -> None:
        super().__init__()
        self.W_dec = nn.Parameter(directions.clone())
        self.W_enc = nn.Parameter(directions.T.contiguous())
        kth = max(1, round(FIRST_DENSITY * len(sae_in)))
        hidden_pre = sae_in @ directions.T
        self.b_enc = nn.Parameter(-hidden_pre.topk(kth, dim=0).values[-1])

    def forward(self, sae_in: Tensor) -> Tensor:
        return torch.relu(sae_in @ self.W_enc + self.b_enc)

    @torch.no_grad()
    def normalise(self) -> None:
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-8))


def _trained(
    sae: SAEWeights,
    dead: Tensor,
    batches: Iterator[Tensor],
    training: SAETraining,
    scale: float,
    number: int,
) -> SAEWeights:
    W_dec = sae.W_dec.clone()
    W_dec[dead] = 0.0
    others = replace(sae, W_dec=W_dec)
    latents = _drawn(others, len(dead), batches, scale, training.seed + number)
    optimizer = torch.optim.Adam(latents.parameters(), training.learning_rate)
    steps = training.steps_of_revival
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1 / steps, steps)
    for _ in range(steps):
        sae_in, left = _left(others, next(batches), scale)
        acts = latents(sae_in)
        error = (left - acts @ latents.W_dec).pow(2).sum(1).mean()
        penalty = (acts * latents.W_dec.norm(dim=1)).sum(1).mean()
        optimizer.zero_grad()
        (error + training.l1_coefficient / 2**number * penalty).backward()
        optimizer.step()
        decay.step()
        latents.normalise()
    return _with(sae, dead, latents, scale)


@torch.no_grad()
def _left(sae: SAEWeights, batch: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return what the encoder sees and what is left unexplained, both scaled."""
    x = batch.to(sae.W_enc.device)
    sae_in = x - sae.b_dec if sae.apply_b_dec_to_input else x
    return sae_in * scale, (x - sae.decode(sae.encode(x))) * scale


@torch.no_grad()
def _drawn(
    sae: SAEWeights,
    count: int,
    batches: Iterator[Tensor],
    scale: float,
    seed: int,
) -> _DeadOnes:
    """Return latents for the errors of rows, drawn in proportion to their squares."""
    seen: list[tuple[Tensor, Tensor]] = []
    while sum(len(left) for _, left in seen) < max(DRAWN_FROM, count):
        seen.append(_left(sae, next(batches), scale))
    sae_in, left = (torch.cat(parts) for parts in zip(*seen, strict=True))
    chance = left.pow(2).sum(1).cpu().double().clamp_min(1e-30)
    generator = torch.Generator().manual_seed(seed)
    # Gumbel's way to draw without replacement; multinomial ends at 2**24 rows.
    noise = torch.rand(len(chance), generator=generator, dtype=torch.float64)
    rows = (chance.log() - (-noise.log()).log()).topk(count).indices
    directions = nn.functional.normalize(left[rows.to(left.device)], dim=1)
    return _DeadOnes(directions, sae_in)


@torch.no_grad()
def _with(
    sae: SAEWeights, dead: Tensor, latents: _DeadOnes, scale: float
) -> SAEWeights:
    """Return the SAE with what the dead latents learned, if it is finite."""
    W_enc, W_dec, b_enc = sae.W_enc.clone(), sae.W_dec.clone(), sae.b_enc.clone()
    learned = (latents.W_enc.T, latents.W_dec, latents.b_enc[:, None])
    sound = torch.cat(learned, dim=1).isfinite().all(dim=1)
    back = dead[sound]
    W_enc[:, back], W_dec[back] = latents.W_enc[:, sound], latents.W_dec[sound]
    b_enc[back] = latents.b_enc[sound] / scale
    return replace(sae, W_enc=W_enc, W_dec=W_dec, b_enc=b_enc)
