# SPDX-License-Identifier: Apache-2.0
"""What each latent does to each answer, to first order.

Turning latent j down by a share s changes an answer's margin by about
-s * sum over tokens of z_j * (dmargin/dx . W_dec[j]). A concept's latents should carry
its own margin and nothing else.

Source: attribution patching (Syed et al. 2023, arXiv:2310.10348), applied to latents
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_sauce.concepts import VISION, decoder_layer_idx
from vllm_sauce.evaluation.exam import NO, YES, Exam
from vllm_sauce.evaluation.shared_prefix import SharedPrefix
from vllm_sauce.sae import SAEWeights


@dataclass(frozen=True, slots=True)
class SiteAttribution:
    """What the latents of one site carry in each picture."""

    effects: Tensor
    """Share of the margin of the picture's s-th concept. [num_pictures, s, d_sae]"""
    mean_acts: Tensor
    """Mean activation over all tokens. [num_pictures, d_sae]"""


def answer_margins(exam: Exam, logits: Tensor, tokens: Tensor) -> Tensor:
    """Return how far the right answer leads: over its domain's names, or over yes/no.

    Shapes: logits [num_pictures, num_reads, vocab], tokens [num_concepts]
        -> [num_pictures, num_reads]
    """
    right = logits.gather(-1, exam.expected[..., None])[..., 0]
    yes_no = (exam.kind == YES) | (exam.kind == NO)
    yes_token = exam.expected[0, int((exam.kind == YES).nonzero()[0])]
    pair = logits[..., [int(yes_token), exam.no_token]].sum(-1) - right
    names = logits[..., tokens]
    domains = exam.domain_of[exam.about]
    rivals = (exam.domain_of == domains[..., None]) & (
        torch.arange(len(tokens)) != exam.about[..., None]
    )
    rival = names.masked_fill(~rivals, float("-inf")).logsumexp(-1)
    return right - torch.where(yes_no, pair, rival)


def attribute(
    runner: SharedPrefix,
    exam: Exam,
    saes: Mapping[str, SAEWeights],
    tokens: Tensor,
    slots: int,
    batch_pictures: int = 8,
) -> dict[str, SiteAttribution]:
    """Return every site's effects on the margins of each picture's concepts.

    ``about`` of the first ``slots`` reads names the picture's concepts.
    """
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {site: [] for site in saes}
    for index in torch.arange(len(exam)).split(batch_pictures):
        part = exam.rows(index)
        activations, logits = _forward(runner, part, list(saes))
        margins = answer_margins(part, logits, tokens)
        kept = part.kind != NO
        gradients: dict[str, list[Tensor]] = {site: [] for site in saes}
        for slot in range(slots):
            own = (part.about == part.about[:, slot, None]) & kept
            margin = (margins * own).sum()
            found = torch.autograd.grad(
                margin, list(activations.values()), retain_graph=slot < slots - 1
            )
            for site, gradient in zip(activations, found, strict=True):
                gradients[site].append(gradient)
        for site, sae in saes.items():
            parts[site].append(_effects(sae, activations[site], gradients[site]))
    return {
        site: SiteAttribution(
            effects=torch.cat([effects for effects, _ in found]),
            mean_acts=torch.cat([acts for _, acts in found]),
        )
        for site, found in parts.items()
    }


def _forward(
    runner: SharedPrefix, exam: Exam, sites: list[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Run a sheet and keep the sites' activations in the graph."""
    for parameter in runner.model.parameters():
        parameter.requires_grad_(False)
    vision = exam.vision.clone().requires_grad_(True)
    activations = {VISION: vision}
    hidden = runner.embed(exam.sheet, vision)
    start = 0
    for site in sorted(site for site in sites if site != VISION):
        stop = (decoder_layer_idx(site) or 0) + 1
        hidden = runner.run_layers(exam.sheet, hidden, {}, start, stop)
        activations[site], start = hidden, stop
    hidden = runner.run_layers(exam.sheet, hidden, {}, start)
    return {site: activations[site] for site in sites}, runner.read(exam.sheet, hidden)


def latent_effects(sae: SAEWeights, acts: Tensor, gradient: Tensor) -> Tensor:
    """Return what each latent adds to an output, to first order, over all tokens.

    Shapes: acts [..., num_tokens, d_sae], gradient [..., num_tokens, d_model]
        -> [..., d_sae]
    """
    return (acts * (gradient @ sae.W_dec.T)).sum(-2)


@torch.no_grad()
def _effects(
    sae: SAEWeights, x: Tensor, gradients: list[Tensor]
) -> tuple[Tensor, Tensor]:
    acts = sae.encode(x)
    effects = [latent_effects(sae, acts, gradient) for gradient in gradients]
    return torch.stack(effects, dim=1), acts.mean(1)


def concept_scores_of_latents(
    found: SiteAttribution, exam: Exam, concept: int, slots: int, harm_weight: float
) -> Tensor:
    """Return for each latent its effect on a concept, less its effects on all others.

    On pictures with the concept its own margin counts for and the other concepts'
    against; on pictures without it, the margin of its domain counts against.

    Shapes: -> [d_sae]
    """
    about = exam.about[:, :slots]
    own = about == concept
    shown = own.any(1)
    benefit = found.effects[own].mean(0)
    beside = found.effects[(~own) & shown[:, None]].clamp_min(0).mean(0)
    same = exam.domain_of[about] == exam.domain_of[concept]
    elsewhere = found.effects[same & ~shown[:, None]].clamp_min(0).mean(0)
    return benefit - harm_weight * (beside + elsewhere)
