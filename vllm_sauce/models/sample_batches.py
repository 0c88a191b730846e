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
    whole: bool = True
    """Whether a picture's rows are its patches, in order."""


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
    whole = not pictured or loaded.takes_whole(samples[pictured[0]])
    for group, read in ((pictured, list(sites)), (plain, words_only)):
        # Rows of tiles, or of pictures of any size, are one picture's alone.
        step = batch_size if whole or group is plain else 1
        for start in range(0, len(group) if read else 0, step):
            part = group[start : start + step]
            yield _run(loaded, [samples[row] for row in part], part, read, whole)


@torch.inference_mode()
def _run(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    rows: list[int],
    sites: list[str],
    whole: bool,
) -> SampleBatch:
    kept: dict[str, Tensor] = {}

    def keep(site: str, x: Tensor) -> Tensor:
        shape = x.shape if whole or not is_vision(site) else (1, -1, x.shape[-1])
        found = x.detach().float().reshape(shape)
        # A model may take its tiles one by one.
        kept[site] = torch.cat([kept[site], found], 1) if site in kept else found
        return x

    inputs = loaded.inputs(samples, tiled=not whole)
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
        _seen(loaded, samples, inputs.get("pixel_values"), whole),
        whole,
    )


def _seen(
    loaded: LoadedModel, samples: Sequence[Sample], pixels: Tensor | None, whole: bool
) -> Tensor | None:
    if pixels is None:
        return None
    if whole:
        return loaded.seen(pixels)
    pictures = [open_picture(s.picture) for s in samples if s.picture is not None]
    return torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
