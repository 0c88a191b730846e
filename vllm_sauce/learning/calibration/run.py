# SPDX-License-Identifier: Apache-2.0
"""``sauce calibrate``: from selected latents to a bundle, resumable.

What was tried for each concept stays in ``<out>.calibration``: a file a concept,
written when the concept is done, so a killed run goes on with the next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_sauce.activations.shards import write_whole
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.bundle.fingerprint import file_sha256
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.errors import BundleMismatchError, ConfigError
from vllm_sauce.evaluation.asking.vllm_engine import CandidateEngine
from vllm_sauce.evaluation.questionnaire import Outcome, Questionnaire
from vllm_sauce.learning.calibration import edit_choices
from vllm_sauce.learning.calibration.config import CalibrateRequest
from vllm_sauce.learning.calibration.coordinate_search import Setting
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.examiner import Examiner, Trial
from vllm_sauce.learning.calibration.frontier import frontier, keeping
from vllm_sauce.learning.calibration.search import Calibrated, Note, calibrate
from vllm_sauce.learning.selection.select import read_sae
from vllm_sauce.learning.selection.selection_file import SelectionFile
from vllm_sauce.sae import SAEWeights
from vllm_sauce.scale import orphans

if TYPE_CHECKING:
    pass

Actor = Callable[..., dict[str, Any]]
RUN_FILE = "run.json"
SEARCH_SPLIT, SCORE_SPLIT = "calibration", "scoring"


class _Run:
    """The inputs, read and checked."""

    def __init__(self, request: CalibrateRequest) -> None:
        self.request = request
        self.fingerprint = fingerprint_model(request.model)
        found = [SelectionFile.read(path) for path in request.selections]
        self.selections = {one.site: one for one in found}
        if set(self.selections) != set(request.saes):
            raise ConfigError(
                f"the selections are for {', '.join(sorted(self.selections))}, the "
                f"SAEs for {', '.join(sorted(request.saes))}"
            )
        for one in found:
            if differences := one.fingerprint.differences(self.fingerprint):
                raise BundleMismatchError(
                    f"the selection for {one.site} was made on another model: "
                    f"{'; '.join(differences)}"
                )
        self.saes: dict[str, SAEWeights] = {
            site: read_sae(path, site, self.fingerprint)
            for site, path in request.saes.items()
        }
        self.file = ConceptFile.read(request.concepts)
        self.names = request.names or tuple(self.file.concepts)
        for name in self.names:
            if name not in self.file.concepts:
                raise ConfigError(f"{request.concepts} has no concept {name!r}")

    def choices(self, name: str) -> EditChoices:
        """Return what a concept may choose from."""
        config = self.request.config
        latents = {
            site: one.concepts[name]
            for site, one in self.selections.items()
            if name in one.concepts
        }
        return EditChoices(
            name, latents, config.k, config.gates, config.actions, config.rankings
        )

    def identity(self) -> str:
        """Return what must be the same for a run to go on, as one hash."""
        request = self.request
        told = {
            "config": request.config.to_json(),
            # Not a setting, but the same quantile is another gate with another one.
            "gate_margin": edit_choices.GATE_MARGIN,
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
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
    actor: Callable[..., Actor] | None = None,
) -> Bundle:
    """Calibrate all concepts that are not yet, and write the bundle.

    ``note`` is told of the work inside a group of concepts (not that of actors),
    ``report`` of the groups.

    Raises: SauceError of the kind that says what is wrong
    """
    if request.out.exists() and not request.overwrite:
        raise ConfigError(f"{request.out} is there already; --overwrite replaces it")
    run = _Run(request)
    _begin(run)
    left = [name for name in run.names if not _path(run, name).exists()]
    done = len(run.names) - len(left)
    size = request.config.concepts_per_engine
    groups = [left[start : start + size] for start in range(0, len(left), size)]
    report("concepts", done, len(run.names))
    for result in _results(request, groups, note, actor):
        for name, entry in zip(result["names"], result["entries"], strict=True):
            write_whole(_path(run, name), entry.encode())
        done += len(result["names"])
        report("concepts", done, len(run.names))
    results = {name: json.loads(_path(run, name).read_text()) for name in run.names}
    used = {site for entry in results.values() for site in entry["edits"]}
    bundle = Bundle.build(
        run.fingerprint,
        {site: sae for site, sae in run.saes.items() if site in used},
        Catalogue(_concept(run, name, entry) for name, entry in results.items()),
    )
    bundle.save(request.out)
    return bundle


def _begin(run: _Run) -> None:
    """Make the folder, or check that it is this run's."""
    folder, identity = run.request.folder, run.identity()
    path = folder / RUN_FILE
    if path.exists():
        if json.loads(path.read_text()).get("identity") != identity:
            raise ConfigError(
                f"{folder} holds another calibration (other model, SAEs, latents, "
                "examples or settings); remove it or give another --out"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    told = {"identity": identity, "config": run.request.config.to_json()}
    write_whole(path, (json.dumps(told, indent=1) + "\n").encode())


def _results(
    request: CalibrateRequest,
    groups: list[list[str]],
    note: Note,
    actor: Callable[..., Actor] | None,
) -> Iterator[dict[str, Any]]:
    """Yield each group's results, from here or from actors."""
    resources = request.resources
    if resources is None:
        here = (actor or GroupActor)(request)
        for names in groups:
            yield here({"names": names}, note)
        return
    from vllm_sauce.scale.cluster import connected, results_of

    with connected(resources) as placed:
        rows = [{"names": names} for names in groups]
        told = (_absolute(request),)
        yield from results_of(actor or GroupActor, told, rows, placed)


def _absolute(request: CalibrateRequest) -> CalibrateRequest:
    """Return the request as another process in another folder needs it."""
    from vllm_sauce.scale.cluster import everywhere

    return replace(
        request,
        model=everywhere(request.model),
        saes={site: path.resolve() for site, path in request.saes.items()},
        selections=tuple(path.resolve() for path in request.selections),
        concepts=request.concepts.resolve(),
        resources=None,
    )


class GroupActor:
    """Calibrates one group of concepts after another, each with an engine of its own.

    It reads the inputs by their paths, so actors on other machines must see them.
    """

    def __init__(self, request: CalibrateRequest) -> None:
        orphans.tie_children()
        self.run = _Run(request)

    def __call__(
        self, row: dict[str, Any], note: Note = lambda what, done, total: None
    ) -> dict[str, Any]:
        """Calibrate the concepts that a row names; returns JSON of each."""
        names = [str(name) for name in row["names"]]
        found = _calibrate_group(self.run, names, note)
        return {"names": names, "entries": [found[name] for name in names]}


def _calibrate_group(run: _Run, names: list[str], note: Note) -> dict[str, str]:
    request = run.request
    choices = {name: run.choices(name) for name in names}
    candidates: dict[str, dict[str, SiteEdit]] = {}
    for choice in choices.values():
        candidates |= choice.candidates()
    with CandidateEngine(
        request.model,
        run.saes,
        candidates,
        engine_args=request.engine_args,
        widest=max(choice.widest() for choice in choices.values()),
        most=max(choice.most_parts() for choice in choices.values()),
    ) as engine:
        asked = Questionnaire(run.file, SEARCH_SPLIT, request.config.seed)
        found = calibrate(Examiner(engine, choices, asked, request.config), note)
        scoring = Questionnaire(run.file, SCORE_SPLIT, request.config.seed)
        judge = Examiner(engine, choices, scoring, request.config)
        settings = {name: [one.setting] for name, one in found.items()}
        scored = judge.trials(settings, 1.0)
        return {
            name: _entry(
                one,
                choices[name],
                scored[name][one.setting].scores,
                judge.base(name),
            )
            for name, one in found.items()
        }


def _entry(
    one: Calibrated, choices: EditChoices, scores: Outcome, base: Outcome
) -> str:
    def told(trial: Trial) -> dict[str, object]:
        return _trial_json(trial, choices)

    entry = {
        "concept": one.name,
        "edits": {site: asdict(edit) for site, edit in one.edits.items()},
        "setting": _named(one.setting, choices),
        "within_floor": one.within_floor,
        "calibration": {"edited": one.scores.to_json(), "base": one.base.to_json()},
        "scoring": {"edited": scores.to_json(), "base": base.to_json()},
        "worst_other": {
            "calibration": _worst(one.scores, one.base),
            "scoring": _worst(scores, base),
        },
        "frontier": [told(trial) for trial in frontier(one.trials)],
        "trials": [told(trial) for trial in one.trials],
    }
    return json.dumps(entry, indent=1) + "\n"


def _worst(scores: Outcome, base: Outcome) -> dict[str, object]:
    name, lost = scores.worst(base)
    return {"concept": name, "lost": round(lost, 4)}


def _trial_json(trial: Trial, choices: EditChoices) -> dict[str, object]:
    return {
        "setting": _named(trial.setting, choices),
        "share": trial.share,
        "objective": round(trial.objective, 4),
        "worst_other": {"concept": trial.worst[0], "lost": round(trial.worst[1], 4)},
        "scores": trial.scores.to_json(),
        "forgetting": round(trial.scores.forgetting, 4),
        "keeping": round(keeping(trial.scores), 4),
    }


def _named(setting: Setting, choices: EditChoices) -> dict[str, object]:
    """Return what is done at each site that is edited."""
    return {site: one.to_json() for site, one in choices.at(setting).items()}


def _path(run: _Run, name: str) -> Path:
    # Names may hold anything printable; files may not.
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return run.request.folder / f"concept-{digest}.json"


def _concept(run: _Run, name: str, entry: Mapping[str, Any]) -> Concept:
    edits = {
        site: SiteEdit(**{key: tuple(values) for key, values in edit.items()})
        for site, edit in entry["edits"].items()
    }
    scoring = entry["scoring"]
    base = {f"base_{n}": s for n, s in scoring["base"].items() if n != "HM"}
    return Concept(
        name=name,
        domain=run.file.concepts[name].domain,
        edits=edits,
        provenance={
            "method": "sauce calibrate: ranking, k, gate and action at each site",
            "settings": entry["setting"],
            "seed": run.request.config.seed,
            "within_floor": entry["within_floor"],
            "retain_floor": run.request.config.retain_floor,
            "tried": len(entry["trials"]),
            "calibration": entry["calibration"]["edited"],
            "worst_other": entry["worst_other"]["scoring"],
            "worst_floor": run.request.config.worst_floor,
        },
        scores={**scoring["edited"], **base},
    )


def sae_digest(sae: SAEWeights) -> str:
    """Return a hash of an SAE's tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sae.tensors().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
