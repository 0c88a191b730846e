# SPDX-License-Identifier: Apache-2.0
"""Does an SAE reconstruct these activations, and would another reading do better?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from vllm_sauce.errors import BundleMismatchError, ReconstructionError
from vllm_sauce.learning.importing.settings import MIN_EXPLAINED_VARIANCE
from vllm_sauce.learning.importing.site_samples import MOST_TOKENS
from vllm_sauce.sae import SAEWeights
from vllm_sauce.sae.quality import SAEQuality, sae_quality

CLEARLY_BETTER: Final = 0.9
"""Another reading convicts the one asked for if it leaves less than this share of what
that one leaves unexplained, and at least 0.01 less."""

FEW_TOKENS: Final = 256
"""Rows that readings are compared on: there is one a layer, and SAEs are large."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The same numbers, understood in another way."""

    words: str
    """What is different: "with b_dec not subtracted"."""

    sae: SAEWeights
    activations: Tensor

    layer: str | None = None
    """The other layer that it is read at, if it is that."""

    decisive: bool = True
    """Whether doing better convicts. A larger input makes any SAE of ReLU denser and so
    explain more, which says nothing of how it was meant: a hint only."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """What an SAE that was not refused reconstructs."""

    quality: SAEQuality
    alike: Mapping[str, float]
    """Layers that it explains as well as its own, and how much: it may be theirs."""


def check_reconstruction(
    sae: SAEWeights,
    site: str,
    activations: Mapping[str, Tensor],
    *,
    min_explained_variance: float = MIN_EXPLAINED_VARIANCE,
    compare: bool = True,
) -> Reconstruction:
    """Measure an SAE at its site; refuse it if it explains too little.

    ``activations`` has the site's and may have other layers'. With ``compare``
    the SAE is also refused if another reading of it explains clearly more.

    Shapes: activations [num_tokens, d_model] each
    Raises: BundleMismatchError, ReconstructionError
    """
    check_width(sae, site, activations[site].shape[1])
    quality = sae_quality(sae, _spread(activations[site], MOST_TOKENS))
    measured = quality.explained_variance
    enough = measured >= min_explained_variance
    few = {name: _spread(x, FEW_TOKENS) for name, x in activations.items()}
    as_asked = sae_quality(sae, few[site])
    found = [(sae_quality(x.sae, x.activations), x) for x in readings(sae, site, few)]
    others = sorted(found, key=lambda pair: -pair[0].explained_variance)
    outdone = compare and any(
        reading.decisive and _clearly_better(other, as_asked)
        for other, reading in others
    )
    if enough and not outdone:
        alike = {
            reading.layer: other.explained_variance
            for other, reading in others
            if reading.layer and not _clearly_better(as_asked, other)
        }
        return Reconstruction(quality, alike)
    # What explains nothing is no hint, even if it is less wrong.
    better = [
        f"{reading.words} it would be {other.explained_variance:.2f}"
        for other, reading in others
        if other.explained_variance > max(measured, 0.0)
    ]
    raise ReconstructionError(_words(site, quality, min_explained_variance, better[:4]))


def readings(
    sae: SAEWeights, site: str, activations: Mapping[str, Tensor]
) -> Iterator[Reading]:
    """Yield the usual mistakes undone: what the SAE may have been meant as."""
    x = activations[site]
    subtracted = sae.apply_b_dec_to_input
    words = f"with b_dec {'not ' if subtracted else ''}subtracted from the input"
    yield Reading(words, replace(sae, apply_b_dec_to_input=not subtracted), x)
    if sae.d_model == sae.d_sae:
        for words, turned in (
            ("W_enc", replace(sae, W_enc=sae.W_enc.T)),
            ("W_dec", replace(sae, W_dec=sae.W_dec.T)),
            ("both matrices", replace(sae, W_enc=sae.W_enc.T, W_dec=sae.W_dec.T)),
        ):
            yield Reading(f"with {words} transposed", turned, x)
    for other, seen in sorted(activations.items()):
        if other != site and seen.shape[1] == sae.d_model:
            yield Reading(f"at {other}", sae, seen, layer=other)
    yield from _rescaled(sae, x)


def _rescaled(sae: SAEWeights, x: Tensor) -> Iterator[Reading]:
    if sae.normalize_activations != "none":
        plain = replace(sae, normalize_activations="none")
        yield Reading("without normalising the input", plain, x, decisive=False)
        return
    scale = float(x.shape[1] ** 0.5 / x.norm(dim=1).mean())
    # The share explained is that of the SAE with the scale folded in, without a copy.
    words = f"with the input scaled by {scale:.3g}"
    yield Reading(words, sae, x * scale, decisive=False)
    normal = replace(sae, normalize_activations="layer_norm")
    words = "with every input normalised (layer_norm)"
    yield Reading(words, normal, x, decisive=False)


def _clearly_better(other: SAEQuality, mine: SAEQuality) -> bool:
    left, left_by_mine = 1 - other.explained_variance, 1 - mine.explained_variance
    # Where next to nothing is left, shares are noise.
    return left < min(CLEARLY_BETTER * left_by_mine, left_by_mine - 0.01)


def _words(site: str, quality: SAEQuality, wanted: float, better: list[str]) -> str:
    measured = quality.explained_variance
    verdict = (
        f"at least {wanted:g} is wanted"
        if measured < wanted
        else "another reading explains clearly more (--no-compare accepts it as it is)"
    )
    hint = (
        "; ".join(better)
        if better
        else "no other reading does better: is it this model's and this site's SAE? "
        "Are the inputs like those it was trained on (--texts, --pictures)?"
    )
    return (
        f"at {site} the SAE explains {measured:.2f} of the activations' variance "
        f"({'less than their mean does; ' if measured < 0 else ''}"
        f"L0 {quality.l0:.1f}); {verdict}. {hint[0].upper()}{hint[1:]}"
    )


def check_width(sae: SAEWeights, site: str, width: int | None) -> None:
    """Refuse an SAE for activations of another width; None is not known.

    Raises: BundleMismatchError
    """
    if width not in (None, sae.d_model):
        raise BundleMismatchError(
            f"the SAE is for activations of width {sae.d_model}, the model's at {site} "
            f"have {width}: another site or another model"
        )


def _spread(x: Tensor, count: int) -> Tensor:
    rows = torch.linspace(0, len(x) - 1, min(len(x), count)).long()
    return x[rows].float()
