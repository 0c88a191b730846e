# SPDX-License-Identifier: Apache-2.0
"""The stages of ``sauce learn``: what each is told, and what it leaves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_sauce.bundle.served_sae import is_served_sae
from vllm_sauce.concepts import is_vision
from vllm_sauce.inspection.settings import InspectRequest
from vllm_sauce.learning.calibration.config import CalibrateRequest
from vllm_sauce.learning.harvest.settings import HarvestRequest, ShownSamples
from vllm_sauce.learning.importing.settings import ImportRequest
from vllm_sauce.learning.request import LearnRequest
from vllm_sauce.learning.rows.settings import FitRequest
from vllm_sauce.learning.selection.settings import CAUSAL, SelectRequest
from vllm_sauce.learning.training.settings import FidelitySettings, HarvestTraining


@dataclass(frozen=True, slots=True)
class Stage:
    """A subcommand, what it is told, and what is there when it is done."""

    name: str
    """The subcommand, and what of."""
    request: Any
    """The dataclass that the subcommand takes."""
    result: Path
    failures: Path | None = None
    """Named here, single samples may fail (status 1) and the rest goes on."""
    weak: int | None = None
    """The status that says that all is there, and some of it does too little."""
    only_shows: bool = False
    """Whether it shows what is there: if it fails, the run is whole all the same."""


def stages(request: LearnRequest) -> list[Stage]:
    """Return what is to be done, in order."""
    shards = request.folder / "harvest"
    selection = ShownSamples(concepts=request.concepts, split="selection")
    found = [_harvest(request, "concepts", request.sites, shards, selection)]
    if request.trained and (shown := trained_on(request)) is not None:
        shards = request.folder / "harvest-train"
        what = "training texts" if shown.texts else "training pictures"
        found.append(_harvest(request, what, request.trained, shards, shown))
    for site in () if request.edits == "rows" else request.sites:
        path = request.sae_path(site)
        if site in request.trained:
            found.append(_train(request, site, shards, path))
        elif not is_served_sae(Path(request.saes[site])):
            found.append(_import(request, site, path))
    if request.edits != "latents":
        found += [_fit(request, site) for site in request.sites]
    found += [_select(request, site) for site in request.sites]
    found.append(_calibrate(request))
    if request.report:
        found.append(_inspect(request))
    return found


def trained_on(request: LearnRequest) -> ShownSamples | None:
    """Return what SAEs are trained on, None if it is what the concepts show.

    A folder of pictures, a table with the columns "image" and "prompt", or texts.
    """
    path = request.train_pictures
    if request.train_texts is not None:
        return ShownSamples(texts=request.train_texts)
    if path is None:
        return None
    if path.suffix == ".jsonl":
        return ShownSamples(table=path, image_column="image", prompt_column="prompt")
    return ShownSamples(pictures=path)


def _harvest(
    request: LearnRequest,
    what: str,
    sites: tuple[str, ...],
    out: Path,
    shown: ShownSamples,
) -> Stage:
    told = HarvestRequest(
        model=request.model,
        out=out,
        sites=sites,
        shown=shown,
        harvest=request.harvest,
        engine_args=request.engine_args,
        resources=request.resources,
    )
    done, failures = out / "harvest.done", out / "failures.jsonl"
    return Stage(f"harvest {what}", told, done, failures)


def _folder(pictures: Path | None) -> Path | None:
    """Return the folder that pictures are in."""
    return pictures.parent if pictures and pictures.suffix == ".jsonl" else pictures


def _train(request: LearnRequest, site: str, shards: Path, out: Path) -> Stage:
    pictures = _folder(request.train_pictures) or request.concepts.parent
    told = HarvestTraining(
        harvest=shards,
        site=site,
        out=out,
        training=request.training,
        fidelity=FidelitySettings(
            model=request.model,
            pictures=(pictures,),
            samples=request.fidelity_samples,
        ),
        resume=True,
    )
    return Stage(f"train {site}", told, out / "figures.json")


def _import(request: LearnRequest, site: str, out: Path) -> Stage:
    told = ImportRequest(
        source=request.saes[site],
        model=request.model,
        site=site,
        out=out,
        pictures=_folder(request.train_pictures),
        texts=None if is_vision(site) else request.train_texts,
    )
    return Stage(f"import {site}", told, out / "bundle.json")


def _fit(request: LearnRequest, site: str) -> Stage:
    told = FitRequest(
        site=site,
        harvest=request.folder / "harvest",
        concepts=request.concepts,
        out=request.edited_path(site),
        sae=None if request.edits == "rows" else request.sae_path(site),
        fit=request.rows,
    )
    return Stage(f"fit {site}", told, told.out / "bundle.json")


def _selection(request: LearnRequest, site: str) -> Path:
    return request.folder / f"selection-{site}.json"


def _select(request: LearnRequest, site: str) -> Stage:
    told = SelectRequest(
        **asdict(request.selection),
        sae=request.edited_path(site),
        site=site,
        harvest=request.folder / "harvest",
        concepts=request.concepts,
        out=_selection(request, site),
        k=request.latents,
        model=request.model,
        engine_args=request.engine_args if request.selection.score == CAUSAL else {},
    )
    return Stage(f"select {site}", told, told.out)


def _calibrate(request: LearnRequest) -> Stage:
    told = CalibrateRequest(
        model=request.model,
        saes={site: request.edited_path(site) for site in request.sites},
        selections=tuple(_selection(request, site) for site in request.sites),
        concepts=request.concepts,
        out=request.out,
        config=request.calibration,
        engine_args=request.engine_args,
        resources=request.resources,
    )
    # 3: some concept is not forgotten.
    return Stage("calibrate", told, request.out / "bundle.json", weak=3)


def _inspect(request: LearnRequest) -> Stage:
    told = InspectRequest(
        bundle=str(request.out),
        model=Path(request.model),
        concepts=request.concepts,
        split="scoring",
        out=request.folder / "report.html",
    )
    return Stage("inspect", told, told.out, only_shows=True)
