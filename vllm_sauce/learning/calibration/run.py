# SPDX-License-Identifier: Apache-2.0
"""``sauce calibrate``: from selected latents to a bundle, resumable.

What was tried stays in ``<out>.calibration``: the common settings, sought first, and a
file a concept, written when the concept is done, so a killed run goes on with the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
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
from vllm_sauce.learning.calibration.common import Note, common_settings, pools
from vllm_sauce.learning.calibration.config import CalibrateRequest
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.examiner import Examiner
from vllm_sauce.learning.calibration.grid import SiteGrid
from vllm_sauce.learning.calibration.record import concept_of, record, record_path
from vllm_sauce.learning.calibration.search import Calibrated, calibrate
from vllm_sauce.learning.calibration.setting import (
    setting_of_json,
    setting_to_json,
)
from vllm_sauce.learning.selection.selection_file import SelectionFile
from vllm_sauce.sae import SAEWeights
from vllm_sauce.scale import orphans
from vllm_sauce.scale.cluster import connected, everywhere, results_of

RUN_FILE = "run.json"
CHOSEN_BY = "the common setting, unless another is better by a standard error of each"
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

    def selected(self) -> list[str]:
        """Return the concepts of the file of which something was selected."""
        return [
            name
            for name in self.file.concepts
            if any(
                found.latents or found.rows
                for one in self.selections.values()
                if (found := one.concepts.get(name)) is not None
            )
        ]

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
    names = request.names or tuple(inputs.file.concepts)
    paths = {name: record_path(request.folder, name) for name in names}
    left = [name for name, path in paths.items() if not path.exists()]
    done, size = len(paths) - len(left), request.config.concepts_per_engine
    groups = [left[start : start + size] for start in range(0, len(left), size)]
    note("concepts", done, len(paths))
    if left:
        with _workers(request, note) as results:
            common = _common(inputs, left, results)
            rows = [
                {
                    "names": group,
                    # As text: of a table's rows each would have all fields of all.
                    "common": json.dumps({n: common[n] for n in group if n in common}),
                }
                for group in groups
            ]
            for result in results(rows):
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


Rows = list[dict[str, Any]]


@contextmanager
def _workers(
    request: CalibrateRequest, note: Note
) -> Iterator[Callable[[Rows], Iterator[dict[str, Any]]]]:
    """Give what yields the results of rows of work, from here or from actors."""
    if request.resources is None:
        here = GroupActor(request)
        yield lambda rows: (here(row, note) for row in rows)
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
        yield lambda rows: results_of(GroupActor, (absolute,), rows, placed)


def _common(
    inputs: _Inputs,
    left: Sequence[str],
    results: Callable[[Rows], Iterator[dict[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """Return the common setting of each concept that is left, where there is one.

    Sought on all concepts that there are, whichever are asked for: so it is the same
    after a killed run, and for what is asked for later.
    """
    folder, seed = inputs.request.folder, inputs.request.config.seed
    choices = {
        name: inputs.choices(name)
        for name in dict.fromkeys((*inputs.selected(), *left))
    }
    sought = pools(choices, seed)
    wanted = {choices[name].grids for name in left}
    paths = {grids: common_path(folder, grids) for grids in sought if grids in wanted}
    rows = [
        {"names": sought[grids], "path": str(path)}
        for grids, path in paths.items()
        if not path.exists()
    ]
    for result in results(rows) if rows else ():
        write_whole(Path(result["path"]), result["tried"].encode(), LearnError)
    best = {
        grids: json.loads(path.read_text())[0]["setting"]
        for grids, path in paths.items()
    }
    return {n: best[choices[n].grids] for n in left if choices[n].grids in best}


def common_path(folder: Path, grids: Sequence[SiteGrid]) -> Path:
    """Return where the common settings of concepts that share their grids are kept."""
    told = json.dumps([asdict(grid) for grid in grids], sort_keys=True)
    return folder / f"common-{hashlib.sha256(told.encode()).hexdigest()[:16]}.json"


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
        """Do a row's work: seek a common setting, or calibrate what it names."""
        inputs, names = self.inputs, [str(name) for name in row["names"]]
        config = inputs.request.config
        choices = {name: inputs.choices(name) for name in names}
        asked = Questionnaire(inputs.file, SEARCH_SPLIT, config.seed)
        with self._asker(choices) as asker:
            examiner = Examiner(asker, choices, asked, config)
            if "path" in row:
                tried = [
                    {**asdict(one), "setting": setting_to_json(one.setting)}
                    for one in common_settings(examiner, note)
                ]
                return {
                    "path": row["path"],
                    "tried": json.dumps(tried, indent=1) + "\n",
                }
            given = json.loads(row["common"])
            common = {n: setting_of_json(one) for n, one in given.items()}
            found = calibrate(examiner, common, note)
            return {"names": names, "entries": self._entries(asker, choices, found)}

    @contextmanager
    def _asker(self, choices: Mapping[str, EditChoices]) -> Iterator[EngineAsker]:
        candidates: dict[str, dict[str, SiteEdit]] = {}
        for choice in choices.values():
            candidates |= choice.candidates()
        with EngineAsker.of_candidates(
            self.inputs.request.model,
            self.inputs.saes,
            candidates,
            engine_args=self.inputs.request.engine_args,
            widest=max(choice.widest() for choice in choices.values()),
            most=max(choice.most_parts() for choice in choices.values()),
        ) as asker:
            yield asker

    def _entries(
        self,
        asker: EngineAsker,
        choices: Mapping[str, EditChoices],
        found: Mapping[str, Calibrated],
    ) -> list[str]:
        """Return the record of each concept, scored on the split that chose nothing."""
        config = self.inputs.request.config
        scoring = Questionnaire(self.inputs.file, SCORE_SPLIT, config.seed)
        judge = Examiner(asker, choices, scoring, config)
        settings = {name: [one.best.setting] for name, one in found.items()}
        scored = judge.trials(settings, 1.0)
        entries = []
        for name, one in found.items():
            (trial,) = scored[name].values()
            entries.append(
                record(name, one, trial.scores, judge.base(name), asker.mode())
            )
        return entries


def sae_digest(sae: SAEWeights) -> str:
    """Return a hash of an SAE's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.tensors().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
