# SPDX-License-Identifier: Apache-2.0
"""Samples through a transformers model in batches, their activations taken at sites."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from vllm_sauce.concepts import is_vision
from vllm_sauce.data.samples import Sample, open_picture
from vllm_sauce.models.loaded_model import LoadedModel, is_whole
from vllm_sauce.models.site_hooks import site_hook

BATCH = 16
"""Samples that are run at once."""


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
    whole: bool = True
    """Whether a picture's rows are its patches, in order."""


def sample_batches(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    sites: Iterable[str],
    rows: Iterable[int] | None = None,
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
        for start in range(0, len(group) if read else 0, BATCH):
            yield from _runs(loaded, samples, group[start : start + BATCH], read)


def _runs(
    loaded: LoadedModel, samples: Sequence[Sample], rows: list[int], sites: list[str]
) -> Iterator[SampleBatch]:
    """Run samples together, or one by one where their pictures' rows would mix."""
    inputs = loaded.inputs([samples[row] for row in rows])
    if len(rows) > 1 and not is_whole(inputs, len(rows)):
        for row in rows:
            yield from _runs(loaded, samples, [row], sites)
    else:
        yield _run(loaded, inputs, samples, rows, sites)


@torch.inference_mode()
def _run(
    loaded: LoadedModel,
    inputs: dict[str, Tensor],
    samples: Sequence[Sample],
    rows: list[int],
    sites: list[str],
) -> SampleBatch:
    kept: dict[str, Tensor] = {}
    whole = is_whole(inputs, len(rows))

    def keep(site: str, x: Tensor) -> Tensor:
        shape = x.shape if whole or not is_vision(site) else (1, -1, x.shape[-1])
        found = x.detach().float().reshape(shape)
        # A model may take its tiles one by one.
        kept[site] = torch.cat([kept[site], found], 1) if site in kept else found
        return x

    with ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(site_hook(loaded.model, site, partial(keep, site)))
        # The inner model: nobody needs the logits of every token.
        getattr(loaded.model, "model", loaded.model)(**inputs)
    return SampleBatch(
        rows,
        kept,
        inputs["input_ids"],
        inputs["attention_mask"].bool(),
        _seen(loaded, [samples[row] for row in rows], inputs, whole),
        whole,
    )


def _seen(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    inputs: dict[str, Tensor],
    whole: bool,
) -> Tensor | None:
    if "pixel_values" not in inputs:
        return None
    if whole:
        return loaded.seen(inputs["pixel_values"])
    pictures = [open_picture(s.picture) for s in samples if s.picture is not None]
    return torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
