# SPDX-License-Identifier: Apache-2.0
"""``sauce calibrate``: from selected latents to a bundle, resumable.

What was tried for each concept stays in ``<out>.calibration``: a file a concept,
written when the concept is done, so a killed run goes on with the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_sauce.bundle import Bundle, ModelFingerprint, fingerprint_model
from vllm_sauce.bundle.served_sae import read_sae
from vllm_sauce.concepts import Catalogue, SiteEdit
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.errors import BundleMismatchError, ConfigError, LearnError
from vllm_sauce.evaluation.asking.vllm_engine import EngineAsker
from vllm_sauce.evaluation.questionnaire import Questionnaire
from vllm_sauce.files import file_sha256, write_whole
from vllm_sauce.learning.calibration import setting
from vllm_sauce.learning.calibration.config import CalibrateRequest
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.examiner import Examiner
from vllm_sauce.learning.calibration.record import concept_of, record, record_path
from vllm_sauce.learning.calibration.search import Note, calibrate
from vllm_sauce.learning.selection.selection_file import SelectionFile
from vllm_sauce.sae import SAEWeights
from vllm_sauce.scale import orphans
from vllm_sauce.scale.cluster import connected, everywhere, results_of

RUN_FILE = "run.json"
CHOSEN_BY = "what is sure by one standard error"
SEARCH_SPLIT, SCORE_SPLIT = "calibration", "scoring"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Inputs:
    """What is calibrated from, read and checked."""

    request: CalibrateRequest
    fingerprint: ModelFingerprint
    selections: Mapping[str, SelectionFile]
    saes: Mapping[str, SAEWeights]
    file: ConceptFile

    @classmethod
    def read(cls, request: CalibrateRequest) -> _Inputs:
        """Read and check all of them.

        Raises: SauceError of the kind that says what is wrong
        """
        fingerprint = fingerprint_model(request.model)
        found = [SelectionFile.read(path) for path in request.selections]
        selections = {one.site: one for one in found}
        if set(selections) != set(request.saes):
            raise ConfigError(
                f"the selections are for {', '.join(sorted(selections))}, the "
                f"SAEs for {', '.join(sorted(request.saes))}"
            )
        for one in found:
            if differences := one.fingerprint.differences(fingerprint):
                raise BundleMismatchError(
                    f"the selection for {one.site} was made on another model: "
                    f"{'; '.join(differences)}"
                )
        saes = {
            site: read_sae(path, site, fingerprint)
            for site, path in request.saes.items()
        }
        file = ConceptFile.read(request.concepts)
        for name in request.names:
            if name not in file.concepts:
                raise ConfigError(f"{request.concepts} has no concept {name!r}")
        return cls(
            request=request,
            fingerprint=fingerprint,
            selections=selections,
            saes=saes,
            file=file,
        )

    def choices(self, name: str) -> EditChoices:
        """Return what a concept may choose from."""
        latents = {
            site: one.concepts[name]
            for site, one in self.selections.items()
            if name in one.concepts
        }
        return EditChoices.of(name, latents, self.request.config)

    def identity(self) -> str:
        """Return what must be the same for a run to go on, as one hash."""
        request = self.request
        told = {
            "config": request.config.to_json(),
            # No settings, but with others the same ones give something else.
            "gate_margin": setting.GATE_MARGIN,
            "chosen_by": CHOSEN_BY,
            "model": self.fingerprint.model_dump(mode="json"),
            "concepts": file_sha256(request.concepts),
            "examples": [example.digest for example in self.file.examples],
            "selections": sorted(map(file_sha256, request.selections)),
            "saes": {site: sae_digest(sae) for site, sae in self.saes.items()},
        }
        text = json.dumps(told, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def calibrate_bundle(
    request: CalibrateRequest,
    note: Note = lambda what, done, total: None,
) -> Bundle:
    """Calibrate all concepts that are not yet, and write the bundle.

    ``note`` is told of the concepts, and of the work on them that is done here.

    Raises: SauceError of the kind that says what is wrong
    """
    if request.out.exists() and not request.overwrite:
        raise ConfigError(f"{request.out} is there already; --overwrite replaces it")
    inputs = _Inputs.read(request)
    _begin(inputs)
    names = request.names or inputs.file.concepts
    paths = {name: record_path(request.folder, name) for name in names}
    left = [name for name, path in paths.items() if not path.exists()]
    done, size = len(paths) - len(left), request.config.concepts_per_engine
    groups = [left[start : start + size] for start in range(0, len(left), size)]
    note("concepts", done, len(paths))
    for result in _results(request, groups, note):
        for name, entry in zip(result["names"], result["entries"], strict=True):
            write_whole(paths[name], entry.encode(), LearnError)
        done += len(result["names"])
        note("concepts", done, len(paths))
    entries = {name: json.loads(path.read_text()) for name, path in paths.items()}
    used = {site for entry in entries.values() for site in entry["edits"]}
    concepts = inputs.file.concepts
    bundle = Bundle.build(
        inputs.fingerprint,
        {site: sae for site, sae in inputs.saes.items() if site in used},
        Catalogue(
            concept_of(entry, concepts[name].domain, request.config)
            for name, entry in entries.items()
        ),
    )
    bundle.save(request.out)
    return bundle


def _begin(inputs: _Inputs) -> None:
    """Make the folder, or check that it is this run's."""
    folder, identity = inputs.request.folder, inputs.identity()
    path = folder / RUN_FILE
    if path.exists():
        if json.loads(path.read_text()).get("identity") != identity:
            raise ConfigError(
                f"{folder} holds another calibration (other model, SAEs, latents, "
                "examples or settings); remove it or give another --out"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    told = {"identity": identity, "config": inputs.request.config.to_json()}
    write_whole(path, (json.dumps(told, indent=1) + "\n").encode(), LearnError)


def _results(
    request: CalibrateRequest, groups: list[list[str]], note: Note
) -> Iterator[dict[str, Any]]:
    """Yield each group's results, from here or from actors."""
    rows = [{"names": names} for names in groups]
    if request.resources is None:
        here = GroupActor(request)
        yield from (here(row, note) for row in rows)
        return
    # As another process in another folder needs it.
    absolute = replace(
        request,
        model=everywhere(request.model),
        saes={site: path.resolve() for site, path in request.saes.items()},
        selections=tuple(path.resolve() for path in request.selections),
        concepts=request.concepts.resolve(),
        resources=None,
    )
    with connected(request.resources) as placed:
        yield from results_of(GroupActor, (absolute,), rows, placed)


class GroupActor:
    """Calibrates one group of concepts after another, each with an engine of its own.

    It reads the inputs by their paths, so actors on other machines must see them.
    """

    def __init__(self, request: CalibrateRequest) -> None:
        orphans.tie_children()
        self.inputs = _Inputs.read(request)

    def __call__(
        self, row: dict[str, Any], note: Note = lambda what, done, total: None
    ) -> dict[str, Any]:
        """Calibrate the concepts that a row names; returns JSON of each."""
        inputs, names = self.inputs, [str(name) for name in row["names"]]
        request, config = inputs.request, inputs.request.config
        choices = {name: inputs.choices(name) for name in names}
        candidates: dict[str, dict[str, SiteEdit]] = {}
        for choice in choices.values():
            candidates |= choice.candidates()
        asked, scoring = (
            Questionnaire(inputs.file, split, config.seed)
            for split in (SEARCH_SPLIT, SCORE_SPLIT)
        )
        with EngineAsker.of_candidates(
            request.model,
            inputs.saes,
            candidates,
            engine_args=request.engine_args,
            widest=max(choice.widest() for choice in choices.values()),
            most=max(choice.most_parts() for choice in choices.values()),
        ) as asker:
            found = calibrate(Examiner(asker, choices, asked, config), note)
            judge = Examiner(asker, choices, scoring, config)
            settings = {name: [one.best.setting] for name, one in found.items()}
            scored = judge.trials(settings, 1.0)
            entries = []
            for name in names:
                (trial,) = scored[name].values()
                told = (trial.scores, judge.base(name), asker.mode())
                entries.append(record(name, found[name], *told))
        return {"names": names, "entries": entries}


def sae_digest(sae: SAEWeights) -> str:
    """Return a hash of an SAE's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.tensors().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
