# SPDX-License-Identifier: Apache-2.0
"""Samples through a transformers model in batches, their activations taken at sites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vllm_sauce.concepts import is_vision
from vllm_sauce.data.samples import Sample
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.site_hooks import site_hook


@dataclass(frozen=True, slots=True)
class SampleBatch:
    """Some samples' activations at the sites asked for."""

    rows: list[int]
    """Their numbers among all samples."""
    activations: dict[str, Tensor]
    """By site. [batch, T, d_model]"""
    input_ids: Tensor
    """[batch, T]"""
    real: Tensor
    """Which tokens are no padding. [batch, T] bool"""
    seen: Tensor | None
    """Pictures as the model sees them. [batch, H, W, 3] uint8"""


def sample_batches(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    sites: Iterable[str],
    rows: Iterable[int] | None = None,
    batch_size: int = 16,
) -> Iterator[SampleBatch]:
    """Run samples (default: all) through the model; those with a picture come first.

    Raises: ConfigError, ActivationsError
    """
    chosen = list(range(len(samples)) if rows is None else rows)
    pictured = [row for row in chosen if samples[row].picture is not None]
    plain = [row for row in chosen if samples[row].picture is None]
    # The vision site has nothing to say about a text.
    words_only = [site for site in sites if not is_vision(site)]
    for group, read in ((pictured, list(sites)), (plain, words_only)):
        for start in range(0, len(group) if read else 0, batch_size):
            part = group[start : start + batch_size]
            yield _run(loaded, [samples[row] for row in part], part, read)


@torch.inference_mode()
def _run(
    loaded: LoadedModel, samples: Sequence[Sample], rows: list[int], sites: list[str]
) -> SampleBatch:
    kept: dict[str, Tensor] = {}

    def keep(site: str, x: Tensor) -> Tensor:
        kept[site] = x.detach().float()
        return x

    inputs = loaded.inputs(samples)
    with ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(site_hook(loaded.model, site, partial(keep, site)))
        # The inner model: nobody needs the logits of every token.
        loaded.model.model(**inputs)
    pixels = inputs.get("pixel_values")
    return SampleBatch(
        rows,
        kept,
        inputs["input_ids"],
        inputs["attention_mask"].bool(),
        None if pixels is None else loaded.seen(pixels),
    )
