# SPDX-License-Identifier: Apache-2.0
"""Calibrate one concept: rank latents, try edits on pictures, keep the best.

Three splits of pictures, none shared: one ranks latents, one picks the setting, and
a third one (not used here) scores the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product

import torch
from torch import Tensor

from vllm_sauce.concepts import VISION, SiteEdit, decoder_layer_idx
from vllm_sauce.concepts.calibration import (
    Trial,
    coordinate_search,
    gate_levels,
    prune,
)
from vllm_sauce.concepts.selection import share_difference
from vllm_sauce.evaluation.attribution import (
    SiteAttribution,
    concept_scores_of_latents,
)
from vllm_sauce.evaluation.exam import Answers, Exam, concept_scores, sample_rows
from vllm_sauce.evaluation.shared_prefix import SharedPrefix
from vllm_sauce.evaluation.site_edits import build_edits
from vllm_sauce.sae import SAEWeights

Edits = dict[str, SiteEdit]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """What is tried, and on how many pictures."""

    grid: Mapping[str, Sequence[object]] = field(
        default_factory=lambda: {
            "ranking": ("attribution", "share"),
            "k": (1, 2, 4, 8, 16, 32),
            "gamma": (-0.5, -1.0, -2.0, -4.0, -8.0),
            "gate": (0.0, 0.9, 0.99, 0.999),
        }
    )
    start: Mapping[str, object] = field(
        default_factory=lambda: {
            "ranking": "attribution",
            "k": 8,
            "gamma": -2.0,
            "gate": 0.99,
        }
    )
    harm_weight: float = 1.0
    """How much an effect on other concepts counts against a latent."""
    screen_pictures: int = 10
    """Pictures with and without the concept that every setting is tried on."""
    final_pictures: int = 30
    """The same for the few best settings."""
    finalists: int = 6
    soft: float = 0.5
    """Weight of probabilities in the score that is maximised; the rest is accuracy."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """The edit chosen for a concept and how it was found."""

    edits: Edits
    objective: float
    settings: dict[str, dict[str, object]]
    """Grid values the edit was made from, by site."""
    tried: int


class Paper:
    """One concept's calibration pictures, with what needs computing only once."""

    def __init__(
        self, runner: SharedPrefix, exam: Exam, concept: int, layers: Sequence[int]
    ) -> None:
        self.runner, self.exam, self.concept = runner, exam, concept
        sheet = exam.sheet
        hidden, start = runner.embed(sheet, exam.vision), 0
        self.resid: dict[int, Tensor] = {}
        for layer_idx in sorted(layers):
            hidden = runner.run_layers(sheet, hidden, {}, start, layer_idx + 1)
            self.resid[layer_idx], start = hidden, layer_idx + 1
        self.plain = runner.read(sheet, runner.run_layers(sheet, hidden, {}, start))

    def objective(
        self, saes: Mapping[str, SAEWeights], edits: Edits, soft: float
    ) -> float:
        """Return the harmonic mean that an edit reaches here."""
        logits = self.logits(saes, edits)
        answers = Answers.of(self.exam, logits, soft)
        return concept_scores(self.exam, self.concept, answers).HM

    def logits(self, saes: Mapping[str, SAEWeights], edits: Edits) -> Tensor:
        """Return all answers' logits; pictures no edit touches keep their own."""
        tensors = build_edits(saes, edits)
        touched = torch.zeros(len(self.exam), dtype=torch.bool)
        layers = {site: decoder_layer_idx(site) for site in tensors}
        for site, edit in tensors.items():
            layer_idx = layers[site]
            x = self.exam.vision if layer_idx is None else self.resid[layer_idx]
            fires = edit.fires(x)
            if layer_idx is not None:
                fires = fires & self.exam.sheet.real_tokens()
            touched |= fires.any(1)
        logits = self.plain.clone()
        index = touched.nonzero()[:, 0]
        if not len(index):
            return logits
        sheet, runner = self.exam.sheet.rows(index), self.runner
        if VISION in tensors:
            hidden = runner.embed(sheet, tensors[VISION](self.exam.vision[index]))
            hidden = runner.run_layers(sheet, hidden, tensors)
        else:
            first = min(i for i in layers.values() if i is not None)
            hidden = tensors[f"decoder.{first}"](self.resid[first][index])
            hidden = runner.run_layers(sheet, hidden, tensors, first + 1)
        logits[index] = runner.read(sheet, hidden)
        return logits


class ConceptSearch:
    """Finds the edit of one concept after another."""

    def __init__(
        self,
        runner: SharedPrefix,
        saes: Mapping[str, SAEWeights],
        selection: Exam,
        attributions: Mapping[str, SiteAttribution],
        activations: Mapping[str, Tensor],
        calibration: Exam,
        config: SearchConfig,
    ) -> None:
        """``activations``: of the first selection pictures, [pictures, tokens, d]."""
        self.runner, self.saes, self.config = runner, dict(saes), config
        self.selection, self.attributions = selection, attributions
        self.activations, self.calibration = activations, calibration
        self.slots = next(iter(attributions.values())).effects.shape[1]

    @torch.inference_mode()
    def search(self, concept: int) -> Found:
        """Return the best edit found at one site or at two together."""
        config = self.config
        layers = [i for i in map(decoder_layer_idx, self.saes) if i is not None]
        rows = sample_rows(
            self.calibration,
            concept,
            config.final_pictures,
            config.final_pictures,
            config.seed,
        )
        shown = int(self.calibration.present[rows, concept].sum())
        count = config.screen_pictures
        screened = torch.cat([rows[:count], rows[shown : shown + count // 2]])
        screened = torch.cat([screened, rows[-(count - count // 2) :]])
        screen = Paper(self.runner, self.calibration.rows(screened), concept, layers)
        trials = {site: self._search_site(concept, site, screen) for site in self.saes}
        candidates = self._candidates(concept, trials, screen)
        final = Paper(self.runner, self.calibration.rows(rows), concept, layers)
        found = self._best(candidates[: config.finalists], final)
        tried = sum(map(len, trials.values())) + len(candidates)
        return Found(found.edits, found.objective, found.settings, tried)

    def _search_site(self, concept: int, site: str, screen: Paper) -> list[Trial]:
        def evaluate(setting: Mapping[str, object]) -> float:
            edit = self.edit(concept, site, setting)
            return screen.objective(self.saes, {site: edit}, self.config.soft)

        return coordinate_search(self.config.grid, self.config.start, evaluate)

    def _candidates(
        self, concept: int, trials: Mapping[str, list[Trial]], screen: Paper
    ) -> list[tuple[float, dict[str, Trial]]]:
        """Return edits of one site and of pairs of sites, best first."""
        found = [
            (trial.score, {site: trial})
            for site, tried in trials.items()
            for trial in tried[:4]
        ]
        for one, two in combinations(trials, 2):
            # A weaker edit at each site may be best once both act.
            for a, b in product(trials[one][:7:3], trials[two][:7:3]):
                pair = {one: a, two: b}
                edits = self._edits(concept, pair)
                score = screen.objective(self.saes, edits, self.config.soft)
                found.append((score, pair))
        return sorted(found, key=lambda item: -item[0])

    def _edits(self, concept: int, trials: Mapping[str, Trial]) -> Edits:
        return {
            site: self.edit(concept, site, dict(trial.setting))
            for site, trial in trials.items()
        }

    def _best(
        self, candidates: list[tuple[float, dict[str, Trial]]], final: Paper
    ) -> Found:
        soft = self.config.soft
        scored = []
        for _, trials in candidates:
            edits = self._edits(final.concept, trials)
            scored.append((final.objective(self.saes, edits, soft), edits, trials))
        score, edits, trials = max(scored, key=lambda item: item[0])
        for site in list(edits):

            def evaluate(edit: SiteEdit, site: str = site) -> float:
                return final.objective(self.saes, {**edits, site: edit}, soft)

            edits[site], score = prune(edits[site], evaluate, score)
        settings = {site: dict(trial.setting) for site, trial in trials.items()}
        return Found(edits, score, settings, len(candidates))

    def ranking(self, concept: int, site: str, name: str) -> Tensor:
        """Return latents best first by "attribution" or by "share", SAUCE's S(i)."""
        found = self.attributions[site]
        if name == "share":
            shown = self.selection.present[:, concept]
            scores = share_difference(
                found.mean_acts[shown].mean(0), found.mean_acts[~shown].mean(0)
            )
        else:
            scores = concept_scores_of_latents(
                found, self.selection, concept, self.slots, self.config.harm_weight
            )
        return scores.sort(descending=True, stable=True).indices

    def edit(self, concept: int, site: str, setting: Mapping[str, object]) -> SiteEdit:
        """Return the edit that a setting of the grid stands for."""
        k, gamma = int(str(setting["k"])), float(str(setting["gamma"]))
        latents = self.ranking(concept, site, str(setting["ranking"]))[:k]
        gates = torch.zeros(k)
        if setting["gate"]:
            x = self._unrelated_tokens(concept, site)
            sae = self.saes[site]
            bias = sae.b_enc[latents] - sae.b_dec @ sae.W_enc[:, latents]
            acts = x @ sae.W_enc[:, latents] + bias
            gates = gate_levels(acts, float(str(setting["gate"])))
        return SiteEdit(
            latents=tuple(latents.tolist()),
            gamma=(gamma,) * k,
            shift=(0.0,) * k,
            gate=tuple(gates.tolist()),
        )

    def _unrelated_tokens(self, concept: int, site: str) -> Tensor:
        """Return activations of pictures neither with a concept nor asked about it.

        Shapes: -> [num_tokens, d_model]
        """
        x = self.activations[site]
        unrelated = (self.selection.about[: len(x)] != concept).all(1)
        if decoder_layer_idx(site) is None:
            return x[unrelated].flatten(0, 1)
        real = self.selection.sheet.real_tokens()[: len(x)]
        return x[real & unrelated[:, None]]
