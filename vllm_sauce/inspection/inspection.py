# SPDX-License-Identifier: Apache-2.0
"""What a report on a bundle shows: latents, pictures, doses, and who else suffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Concept
from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.asking.hf_model import ModelAsker
from vllm_sauce.inspection.activation_maps import (
    ActivationMap,
    ActivationMaps,
    LatentStatistics,
    SitePeaks,
    activation_maps,
    latent_peaks,
    latent_statistics,
)
from vllm_sauce.inspection.concept_effects import EffectMeasure, Effects
from vllm_sauce.inspection.overlap import Overlap, latent_owners, overlaps
from vllm_sauce.inspection.questions import Wording, choose_questions
from vllm_sauce.inspection.settings import InspectSettings
from vllm_sauce.models.loaded_model import LoadedModel

Watch = Callable[[str, int, int], None]
"""Told a stage's name, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class LatentView:
    """One latent of a concept."""

    site: str
    latent: int
    gamma: float
    shift: float
    gate: float
    statistics: LatentStatistics
    owners: tuple[str, ...]
    """Other concepts that edit it."""
    maps: tuple[ActivationMap, ...]
    """Where it fires most, strongest first."""


@dataclass(frozen=True, slots=True)
class ConceptView:
    """All that is shown of one concept."""

    concept: Concept
    samples_with: int
    samples_without: int
    latents: tuple[LatentView, ...]
    """The ones shown, those that tell the concept best first."""
    effects: Effects
    overlaps: Mapping[str, Overlap]

    @property
    def num_latents(self) -> int:
        """How many it edits in all."""
        return sum(len(edit.latents) for edit in self.concept.edits.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A report's content."""

    bundle: Bundle
    bundle_name: str
    model_name: str
    samples: tuple[Sample, ...]
    settings: InspectSettings
    wording: Wording
    concepts: tuple[ConceptView, ...]
    pictures: Mapping[int, Tensor]
    """By sample, as the model sees it. [H, W, 3] uint8"""
    num_questions: int

    @property
    def whole(self) -> bool:
        """Whether every concept of the bundle is in it."""
        return len(self.concepts) == len(self.bundle.catalogue)


def inspect_bundle(
    bundle: Bundle,
    loaded: LoadedModel,
    samples: Sequence[Sample],
    names: Iterable[str] = (),
    settings: InspectSettings | None = None,
    *,
    wording: Wording | None = None,
    bundle_name: str = "bundle",
    model_name: str = "model",
    watch: Watch = lambda stage, done, total: None,
) -> Inspection:
    """Look at some concepts of a bundle (default: all) on samples.

    Raises: ConfigError, UnknownConceptError, ActivationsError
    """
    if not samples:
        raise ConfigError("there is not a single picture or text to look at")
    wanted = dict.fromkeys(names)
    chosen = [bundle.catalogue.concept(name) for name in wanted or bundle.catalogue]
    settings, wording = settings or InspectSettings(), wording or Wording()
    look = _Look(bundle, loaded, tuple(samples), settings, watch)
    peaks = look.peaks(chosen)
    best = {concept.name: look.best_latents(concept, peaks) for concept in chosen}
    maps = look.maps(peaks, best)
    measure = look.measure(wording)
    views = []
    for done, concept in enumerate(chosen, start=1):
        views.append(look.view(concept, best[concept.name], maps, measure))
        look.watch("questions under every edit", done, len(chosen))
    return Inspection(
        bundle=bundle,
        bundle_name=bundle_name,
        model_name=model_name,
        samples=look.samples,
        settings=settings,
        wording=wording,
        concepts=tuple(views),
        pictures=maps.pictures,
        num_questions=len(measure.questions) if measure else 0,
    )


class _Look:
    """One inspection's parts."""

    def __init__(
        self,
        bundle: Bundle,
        loaded: LoadedModel,
        samples: tuple[Sample, ...],
        settings: InspectSettings,
        watch: Watch,
    ) -> None:
        self.catalogue, self.loaded = bundle.catalogue, loaded
        self.samples, self.settings, self.watch = samples, settings, watch
        self.saes = {site: item.weights for site, item in bundle.sites.items()}
        self.owners = latent_owners(bundle.catalogue)

    def peaks(self, chosen: Sequence[Concept]) -> dict[str, SitePeaks]:
        """Return how strongly the chosen concepts' latents fire in each sample."""
        names = [concept.name for concept in chosen]
        total = len(self.samples)
        return latent_peaks(
            self.loaded,
            self.samples,
            self.saes,
            {site: self.catalogue.latents(site, names) for site in self.saes},
            progress=lambda done: self.watch("every sample's latents", done, total),
        )

    def best_latents(
        self, concept: Concept, peaks: Mapping[str, SitePeaks]
    ) -> list[tuple[str, int, LatentStatistics]]:
        """Return the latents to show: those whose edit takes most from the concept.

        That is the difference of the means with and without it, times the length of the
        change that one unit of the latent makes.
        """
        found = []
        for site, edit in concept.edits.items():
            statistics = latent_statistics(
                peaks[site], edit.latents, self.samples, concept.name
            )
            lengths = self.saes[site].W_dec[list(edit.latents)].float().norm(dim=1)
            for at, (latent, stats) in enumerate(statistics.items()):
                factor = float(lengths[at]) * abs(edit.gamma[at] - 1)
                effect = (stats.mean_with - stats.mean_without) * factor
                # Without a sample to tell by, the catalogue's own order stays.
                effect = effect if math.isfinite(effect) else -math.inf
                found.append((effect, site, latent, stats))
        found.sort(key=lambda item: -item[0])
        return [item[1:] for item in found[: self.settings.latents]]

    def maps(
        self,
        peaks: Mapping[str, SitePeaks],
        best: Mapping[str, Sequence[tuple[str, int, LatentStatistics]]],
    ) -> ActivationMaps:
        """Return where the latents to show fire."""
        wanted = {
            (site, latent): peaks[site].top(latent, self.settings.top)
            for latents in best.values()
            for site, latent, _ in latents
        }
        total = len({row for rows in wanted.values() for row in rows})
        return activation_maps(
            self.loaded,
            self.samples,
            self.saes,
            wanted,
            progress=lambda done: self.watch("maps", done, total),
        )

    def measure(self, wording: Wording) -> EffectMeasure | None:
        """Return what asks; None if no picture shows a concept of the catalogue."""
        settings = self.settings
        questions = choose_questions(
            self.samples, self.catalogue, wording, settings.probes
        )
        if not questions:
            return None
        return EffectMeasure(
            ModelAsker(self.loaded, self.catalogue, self.saes),
            questions,
            self.catalogue,
            strengths=settings.strengths,
            retained_pictures=settings.retained,
        )

    def view(
        self,
        concept: Concept,
        best: Sequence[tuple[str, int, LatentStatistics]],
        maps: ActivationMaps,
        measure: EffectMeasure | None,
    ) -> ConceptView:
        """Return all there is to show of a concept."""
        has = sum(concept.name in sample.concepts for sample in self.samples)
        effects = Effects(self.settings.strengths, (), (), None)
        if measure is not None:
            effects = measure.effects(concept.name)
        return ConceptView(
            concept,
            has,
            len(self.samples) - has,
            tuple(self._latent(concept, *item, maps) for item in best),
            effects,
            overlaps(self.catalogue, self.saes, concept.name),
        )

    def _latent(
        self,
        concept: Concept,
        site: str,
        latent: int,
        statistics: LatentStatistics,
        maps: ActivationMaps,
    ) -> LatentView:
        edit = concept.edits[site]
        at = edit.latents.index(latent)
        owners = self.owners[site, latent]
        return LatentView(
            site,
            latent,
            edit.gamma[at],
            edit.shift[at],
            edit.gate[at],
            statistics,
            tuple(name for name in owners if name != concept.name),
            tuple(maps.maps[site, latent]),
        )
