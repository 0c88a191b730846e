# SPDX-License-Identifier: Apache-2.0
"""SAEs, catalogue and scores of sauce-tiny: writes ``examples/tiny/bundle``.

``PYTHONPATH=examples python -m tiny.learn``; run it again to resume.
"""

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor

from tiny.concepts import CONCEPTS, DOMAIN_OF
from tiny.dataset import CACHE
from tiny.exam import BUNDLE_FOLDER, MODEL_FOLDER, Tiny
from tiny.learn_saes import (
    LearnConfig,
    attribute_latents,
    load_sae,
    measure_saes,
    site_activations,
    split_exam,
    train_site_sae,
)
from tiny.scoring import Scorer
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit, decoder_layer_idx
from vllm_sauce.evaluation.concept_search import ConceptSearch, SearchConfig
from vllm_sauce.evaluation.exam import Exam
from vllm_sauce.evaluation.shared_prefix import SharedPrefix
from vllm_sauce.sae import SAEWeights

GATE_PICTURES = 160
"""Selection pictures whose tokens set the gates."""


class Learner:
    """One process's share of the work; every stage is cached in a folder."""

    def __init__(self, config: LearnConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.tiny = Tiny.load()
        self.runner = SharedPrefix(self.tiny.model)

    def sae_path(self, site: str) -> Path:
        """Return where a site's SAE is kept until the bundle is written."""
        return self.folder / f"sae.{site}.safetensors"

    def train_saes(self) -> None:
        """Train what is missing."""
        for site in self.config.sites:
            train_site_sae(self.tiny, site, self.config, self.sae_path(site))

    def saes(self) -> dict[str, SAEWeights]:
        """Return the trained SAEs."""
        return {site: load_sae(self.sae_path(site)) for site in self.config.sites}

    def exam(self, split: str, per_foreground: int) -> Exam:
        """Return a split's exam, cached."""
        path = self.folder / f"exam-{split}-{per_foreground}.pt"
        if not path.exists():
            exam = split_exam(self.tiny, split, per_foreground, self.config.seed)
            torch.save(exam, path)
        # Written by this very program; exams are dataclasses of tensors.
        loaded: Exam = torch.load(path, weights_only=False)
        return loaded

    def search(self) -> ConceptSearch:
        """Return what calibrates a concept; ranks all latents first."""
        config, saes = self.config, self.saes()
        selection = self.exam("selection", config.selection_per_foreground)
        path = self.folder / f"attribution-{config.decoder_site}.safetensors"
        attributions = attribute_latents(self.tiny, saes, selection, path)
        return ConceptSearch(
            self.runner,
            saes,
            selection,
            attributions,
            self.gate_activations(selection),
            self.exam("calibration", config.calibration_per_foreground),
            SearchConfig(seed=config.seed),
        )

    def gate_activations(self, selection: Exam) -> dict[str, Tensor]:
        """Return each site's activations on some selection pictures."""
        part = selection.rows(torch.arange(min(GATE_PICTURES, len(selection))))
        activations = {}
        for site in self.config.sites:
            layer_idx = decoder_layer_idx(site)
            activations[site] = (
                part.vision
                if layer_idx is None
                else site_activations(self.runner, part, layer_idx)
            )
        return activations


_search: ConceptSearch | None = None


def _prepare(config: LearnConfig, folder: Path) -> None:
    global _search
    torch.set_num_threads(1)
    _search = Learner(config, folder).search()


def _calibrate(concept: str, path: Path) -> str:
    """Calibrate one concept and write what was found."""
    assert _search is not None
    found = _search.search(CONCEPTS.index(concept))
    edits = {
        site: {
            "latents": edit.latents,
            "gamma": edit.gamma,
            "shift": edit.shift,
            "gate": [round(gate, 6) for gate in edit.gate],
        }
        for site, edit in found.edits.items()
    }
    entry = {
        "edits": edits,
        "objective": round(found.objective, 4),
        "settings": found.settings,
        "tried": found.tried,
    }
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(entry))
    os.replace(partial, path)
    return f"{concept}: {found.objective:.3f} at {' + '.join(found.edits)}"


def calibrate(
    config: LearnConfig, folder: Path, concepts: Sequence[str], processes: int
) -> None:
    """Calibrate the concepts that have no result yet."""
    paths = {concept: folder / f"concept-{concept}.json" for concept in concepts}
    missing = [concept for concept in concepts if not paths[concept].exists()]
    if not missing:
        return
    with ProcessPoolExecutor(
        processes, initializer=_prepare, initargs=(config, folder)
    ) as pool:
        jobs = [pool.submit(_calibrate, c, paths[c]) for c in missing]
        for job in track(jobs, "concepts"):
            job.result()


def read_concept(config: LearnConfig, folder: Path, name: str) -> Concept:
    """Return a calibrated concept, without scores."""
    entry = json.loads((folder / f"concept-{name}.json").read_text())
    edits = {
        site: SiteEdit(**{key: tuple(values) for key, values in edit.items()})
        for site, edit in entry["edits"].items()
    }
    provenance = {
        "method": "per-concept calibration of ranking, k, gamma, gate and site",
        "ranking": "attribution: effect on the concept's answer margins less its "
        "effects on other concepts'; share: SAUCE's S(i)",
        "settings": entry["settings"],
        "settings_tried": entry["tried"],
        "objective": entry["objective"],
        "selection_pictures": config.selection_per_foreground * 40,
        "calibration_pictures": config.calibration_per_foreground * 40,
        "seed": config.seed,
    }
    return Concept(
        name=name, domain=DOMAIN_OF[name], edits=edits, provenance=provenance
    )


def write_bundle(learner: Learner, concepts: Sequence[str], out: Path) -> None:
    """Score the concepts on the scoring split and write the bundle."""
    config = learner.config
    saes = learner.saes()
    scorer = Scorer(learner.tiny, config.scoring_per_foreground, config.seed)
    scored = []
    for name in track(concepts, "scores"):
        plain = read_concept(config, learner.folder, name)
        scores = scorer.scores(plain, saes)
        scored.append(
            Concept(
                name=name,
                domain=plain.domain,
                edits=plain.edits,
                provenance=plain.provenance,
                scores=scores,
            )
        )
    figures = measure_saes(learner.tiny, saes, config.seed)
    fingerprint = fingerprint_model(MODEL_FOLDER)
    Bundle.build(fingerprint, saes, Catalogue(scored), figures).save(out)


def main() -> None:
    """Run every stage that is not finished yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, default=CACHE / "learn")
    parser.add_argument("--bundle", type=Path, default=BUNDLE_FOLDER)
    parser.add_argument("--concepts", nargs="+", default=list(CONCEPTS))
    parser.add_argument("--decoder-site", default=LearnConfig.decoder_site)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    # Adam's moments sink into denormals, on which a CPU is a hundred times slower.
    torch.set_flush_denormal(True)
    config = LearnConfig(seed=arguments.seed, decoder_site=arguments.decoder_site)
    # Nothing found on one model may be taken for another.
    model = fingerprint_model(MODEL_FOLDER).weights_sha256 or "none"
    folder = arguments.cache / model[:12] / config.decoder_site
    folder.mkdir(parents=True, exist_ok=True)
    learner = Learner(config, folder)
    learner.train_saes()
    learner.search()
    calibrate(config, folder, arguments.concepts, arguments.processes)
    write_bundle(learner, arguments.concepts, arguments.bundle)


if __name__ == "__main__":
    main()
