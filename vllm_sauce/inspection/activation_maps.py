# SPDX-License-Identifier: Apache-2.0
"""Where in which pictures and words a latent fires."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vllm_sauce.concepts import is_vision
from vllm_sauce.data.samples import Sample
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.sample_batches import SampleBatch, sample_batches
from vllm_sauce.models.site_edits import ENCODED_ROWS
from vllm_sauce.sae import SAEWeights

Progress = Callable[[int], None]
"""Told how many samples are done."""


class LatentReader:
    """Reads some latents of an SAE, exactly, without keeping the others."""

    def __init__(
        self, sae: SAEWeights, latents: Sequence[int], device: torch.device
    ) -> None:
        self.latents = tuple(latents)
        self.rows = torch.tensor(self.latents, device=device)
        self.sae = sae.to(device)
        if sae.k is None:
            # These do not depend on each other: the others need not be computed.
            threshold = self.sae.threshold
            self.sae = replace(
                self.sae,
                W_enc=self.sae.W_enc[:, self.rows],
                W_dec=self.sae.W_dec[self.rows],
                b_enc=self.sae.b_enc[self.rows],
                threshold=None if threshold is None else threshold[self.rows],
                rows=(),  # Here each is a latent as any.
            )

    def __call__(self, x: Tensor) -> Tensor:
        """Return the latents' activations.

        Shapes: x [..., d_model] -> [..., num_latents] float32
        """
        if self.sae.k is None:
            return self.sae.encode(x)
        flat = [
            self.sae.encode(part)[:, self.rows]
            for part in x.flatten(0, -2).split(ENCODED_ROWS)
        ]
        return torch.cat(flat).unflatten(0, x.shape[:-1])


@dataclass(frozen=True, slots=True)
class SitePeaks:
    """How strongly latents of one site fire in each sample."""

    latents: tuple[int, ...]
    peak: Tensor
    """Largest activation over a sample's tokens. [num_samples, num_latents]"""
    mean: Tensor
    """Mean activation over a sample's tokens. [num_samples, num_latents]"""
    seen: Tensor
    """Which samples have the site at all. [num_samples] bool"""

    def column(self, latent: int) -> int:
        """Return where a latent stands."""
        return self.latents.index(latent)

    def top(self, latent: int, count: int) -> list[int]:
        """Return the samples in which a latent fires most, strongest first."""
        values = self.peak[:, self.column(latent)]
        order = values.argsort(descending=True, stable=True)[:count]
        return [int(row) for row in order if values[row] > 0]


def _counted(batch: SampleBatch, site: str) -> Tensor:
    """Return which tokens of a site count. Shape [batch, T] bool"""
    if is_vision(site):
        shape = batch.activations[site].shape[:2]
        return torch.ones(shape, dtype=torch.bool, device=batch.real.device)
    # The first token's activation is huge in most models and says nothing.
    first = batch.real.long().cumsum(1) == 1
    return batch.real & ~first


def latent_peaks(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    saes: Mapping[str, SAEWeights],
    latents: Mapping[str, Sequence[int]],
    progress: Progress = lambda done: None,
) -> dict[str, SitePeaks]:
    """Return how strongly each latent fires in each sample, by site.

    Raises: ConfigError, ActivationsError
    """
    readers = {
        site: LatentReader(saes[site], rows, loaded.device)
        for site, rows in latents.items()
        if rows
    }
    found = {
        site: SitePeaks(
            reader.latents,
            torch.zeros(len(samples), len(reader.latents)),
            torch.zeros(len(samples), len(reader.latents)),
            torch.zeros(len(samples), dtype=torch.bool),
        )
        for site, reader in readers.items()
    }
    done = 0
    for batch in sample_batches(loaded, samples, readers):
        for site, x in batch.activations.items():
            counted = _counted(batch, site)[..., None]
            acts = readers[site](x) * counted
            peaks = found[site]
            peaks.peak[batch.rows] = acts.amax(1).cpu()
            peaks.mean[batch.rows] = (acts.sum(1) / counted.sum(1)).cpu()
            peaks.seen[batch.rows] = True
        done += len(batch.rows)
        progress(done)
    return found


@dataclass(frozen=True, slots=True)
class LatentStatistics:
    """How a latent tells samples with a concept from those without it."""

    firing_with: float
    """Share of samples with the concept in which it fires at all."""
    firing_without: float
    mean_with: float
    """Mean over tokens and samples with the concept."""
    mean_without: float


def latent_statistics(
    peaks: SitePeaks, latents: Sequence[int], samples: Sequence[Sample], concept: str
) -> dict[int, LatentStatistics]:
    """Return some latents' statistics; NaN where there is no such sample."""
    columns = [peaks.column(latent) for latent in latents]
    has = torch.tensor([concept in sample.concepts for sample in samples])
    shares = []
    for mask in (has & peaks.seen, ~has & peaks.seen):
        fires = peaks.peak[mask][:, columns] > 0
        shares += [fires.float().mean(0), peaks.mean[mask][:, columns].mean(0)]
    fire, mean, fire_not, mean_not = (share.tolist() for share in shares)
    return {
        latent: LatentStatistics(fire[i], fire_not[i], mean[i], mean_not[i])
        for i, latent in enumerate(latents)
    }


@dataclass(frozen=True, slots=True)
class ActivationMap:
    """Where in one sample a latent fires."""

    row: int
    """The sample's number."""
    peak: float
    grid: Tensor | None
    """One activation a patch, as they lie in the picture. [height, width]"""
    words: tuple[tuple[str, float], ...] = ()
    """Tokens of the prompt with activations; decoder sites only."""


@dataclass(frozen=True, slots=True)
class ActivationMaps:
    """Maps of latents in the samples where they fire most, and those pictures."""

    maps: dict[tuple[str, int], list[ActivationMap]]
    """By site and latent, strongest first."""
    pictures: dict[int, Tensor]
    """By sample, as the model sees it. [H, W, 3] uint8"""


def activation_maps(
    loaded: LoadedModel,
    samples: Sequence[Sample],
    saes: Mapping[str, SAEWeights],
    wanted: Mapping[tuple[str, int], Sequence[int]],
    progress: Progress = lambda done: None,
) -> ActivationMaps:
    """Return the maps of latents (site, latent) in the samples asked for.

    Raises: ConfigError, ActivationsError
    """
    by_site: dict[str, list[int]] = {}
    for site, latent in wanted:
        by_site.setdefault(site, []).append(latent)
    readers = {
        site: LatentReader(saes[site], latents, loaded.device)
        for site, latents in by_site.items()
    }
    rows = sorted({row for asked in wanted.values() for row in asked})
    made: dict[tuple[str, int, int], ActivationMap] = {}
    pictures: dict[int, Tensor] = {}
    done = 0
    for batch in sample_batches(loaded, samples, readers, rows):
        for site, x in batch.activations.items():
            acts = readers[site](x).cpu()
            # Clones: a view would keep every latent of the batch in memory.
            for at, row in enumerate(batch.rows):
                for i, latent in enumerate(readers[site].latents):
                    if row in wanted[site, latent]:
                        one = _map_of(loaded, batch, site, at, acts[at, :, i].clone())
                        made[site, latent, row] = one
        if batch.seen is not None:
            seen = [picture.clone() for picture in batch.seen]
            pictures.update(zip(batch.rows, seen, strict=True))
        done += len(batch.rows)
        progress(done)
    maps = {key: [made[(*key, row)] for row in asked] for key, asked in wanted.items()}
    return ActivationMaps(maps, pictures)


def _map_of(
    loaded: LoadedModel, batch: SampleBatch, site: str, at: int, acts: Tensor
) -> ActivationMap:
    """Return the map of one latent in one sample.

    Shapes: acts [T]
    """
    row = batch.rows[at]
    if is_vision(site):
        return ActivationMap(row, float(acts.max()), _image_grid(batch, acts))
    ids, real = batch.input_ids[at].cpu(), batch.real[at].cpu()
    acts = acts * _counted(batch, site)[at].cpu()
    image = real & (ids == loaded.image_token_id)
    text = real & ~image
    return ActivationMap(
        row,
        float(acts.max()),
        _image_grid(batch, acts[image]) if image.any() else None,
        tuple(
            zip(
                loaded.token_texts(ids[text].tolist()), acts[text].tolist(), strict=True
            )
        ),
    )


def _image_grid(batch: SampleBatch, acts: Tensor) -> Tensor:
    """Return activations as they lie in a picture; one for all of it if unknown.

    Shapes: acts [rows] -> [height, width]
    """
    if batch.whole:
        for first in (0, 1):  # behind a class token, of models that keep it
            side = math.isqrt(len(acts) - first)
            if side * side == len(acts) - first:
                return acts[first:].view(side, side)
    return acts.amax()[None, None]
