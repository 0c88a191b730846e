# SPDX-License-Identifier: Apache-2.0
"""``sauce learn``: from pictures to a bundle, each stage a subcommand of its own.

A stage runs in a process of its own, so that what it held on a GPU is free for the
next. What each leaves is in ``<out>.learn``; a stage that has left its result is not
run again, and each can itself be gone on with.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vllm_sauce.bundle import fingerprint_model
from vllm_sauce.bundle.served_sae import is_served_sae
from vllm_sauce.concepts import check_site
from vllm_sauce.errors import ConfigError, LearnError
from vllm_sauce.files import file_sha256, write_whole
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.selection.select import SCORE_NAMES

RUN_FILE = "learn.json"
STAGES_FILE = "stages.json"
_SEARCH = (
    *("retain_floor", "worst_floor", "prefer", "positives", "negatives", "watched"),
    *("screen", "passes", "finalists"),
)
"""What of a ``CalibrationConfig`` the command line takes."""
_HOW = ("device", "engine_args", "concepts_per_engine", "report", "actors", "ray")
"""Where and how fast it runs; this may change between two runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnRequest:
    """What is learned, of which model, and how."""

    model: str
    sites: tuple[str, ...]
    concepts: Path
    out: Path
    """The bundle."""
    saes: Mapping[str, str] = field(default_factory=dict)
    """By site: a bundle, what SAELens saved, or a public SAE to import; the SAEs of the
    other sites are trained."""
    train_pictures: Path | None = None
    """More pictures to train on, a folder or JSON lines with the columns "image" and
    "prompt"; else those of the concepts."""
    architecture: str = "batchtopk"
    d_sae: int | None = None
    """None is 16 times the site's width."""
    k: float = 32
    l1: float = 1.0
    tokens: int = 2_560_000
    learning_rate: float = 4e-4
    device: str = "cpu"
    score: str = "share"
    latents: int = 64
    """Latents a concept that calibration may choose from, at each site."""
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    """How edits are searched, and what they may cost."""
    concepts_per_engine: int = 20
    actors: int = 1
    """Processes that harvest and calibrate, each with an engine."""
    ray: str | None = None
    """Address of a Ray cluster to run them on."""
    report: bool = True
    """Whether ``sauce inspect`` draws a page at the end."""
    engine_args: tuple[str, ...] = ()
    """KEY=VALUE for vLLM."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.score not in SCORE_NAMES:
            raise ConfigError(
                f"score is one of {', '.join(SCORE_NAMES)}, got {self.score!r}"
            )
        for name in ("actors", "concepts_per_engine", "latents"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        if not self.sites or len(set(self.sites)) != len(self.sites):
            raise ConfigError("name each site once: vision or decoder.<i>")
        for site in (*self.sites, *self.saes):
            check_site(site)
        if stray := sorted(set(self.saes) - set(self.sites)):
            raise ConfigError(f"an SAE is given for {stray[0]}, which is not a --site")

    @property
    def folder(self) -> Path:
        """Where the stages leave what they made."""
        return self.out.with_name(f"{self.out.name}.learn")

    @property
    def trained(self) -> tuple[str, ...]:
        """Sites whose SAE is trained."""
        return tuple(site for site in self.sites if site not in self.saes)

    def sae_path(self, site: str) -> Path:
        """Return where a site's SAE is once its stage is done."""
        given = self.saes.get(site)
        if given is not None and is_served_sae(Path(given)):
            return Path(given)
        return self.folder / f"sae-{site}"


@dataclass(frozen=True, slots=True)
class Stage:
    """A subcommand, and what is there when it is done."""

    name: str
    command: tuple[str, ...]
    """Arguments of ``sauce``."""
    result: Path
    failures: Path | None = None
    """Named here, single samples may fail (status 1) and the rest goes on."""
    only_shows: bool = False
    """Whether it shows what is there: if it fails, the run is whole all the same."""


def stages(request: LearnRequest) -> list[Stage]:
    """Return what is to be done, in order."""
    folder = request.folder
    found = [_harvest(request, folder / "harvest", concepts=True)]
    shards = folder / "harvest"
    if request.trained and request.train_pictures is not None:
        shards = folder / "harvest-train"
        found.append(_harvest(request, shards, concepts=False))
    for site in request.sites:
        path = request.sae_path(site)
        if site in request.trained:
            found.append(_train(request, site, shards, path))
        elif not is_served_sae(Path(request.saes[site])):
            found.append(_import(request, site, path))
    found += [_select(request, site) for site in request.sites]
    found.append(_calibrate(request))
    if request.report:
        found.append(_inspect(request))
    return found


def _engine(request: LearnRequest) -> tuple[str, ...]:
    return tuple(
        part for pair in request.engine_args for part in ("--engine-arg", pair)
    )


def _actors(request: LearnRequest) -> tuple[str, ...]:
    if request.actors == 1 and request.ray is None:
        return ()
    address = () if request.ray is None else ("--ray", request.ray)
    return ("--actors", str(request.actors), *address)


def _harvest(request: LearnRequest, out: Path, *, concepts: bool) -> Stage:
    sites = request.sites if concepts else request.trained
    shown = (
        ("--concepts", str(request.concepts), "--split", "selection")
        if concepts
        else _training_pictures(request)
    )
    command = (
        *("harvest", "--model", request.model, "--out", str(out)),
        *(part for site in sites for part in ("--site", site)),
        *shown,
        *_actors(request),
        *_engine(request),
    )
    what = "concepts" if concepts else "training pictures"
    return Stage(
        f"harvest {what}", command, out / "harvest.done", out / "failures.jsonl"
    )


def _training_pictures(request: LearnRequest) -> tuple[str, ...]:
    """Return a folder, or a table with the columns "image" and "prompt"."""
    path = request.train_pictures
    if path is not None and path.suffix == ".jsonl":
        columns = ("--image-column", "image", "--prompt-column", "prompt")
        return ("--table", str(path), *columns)
    return ("--pictures", str(path))


def _folder(pictures: Path | None) -> Path | None:
    """Return the folder that pictures are in."""
    return pictures.parent if pictures and pictures.suffix == ".jsonl" else pictures


def _train(request: LearnRequest, site: str, shards: Path, out: Path) -> Stage:
    width = ("--d-sae", str(request.d_sae)) if request.d_sae else ()
    pictures = _folder(request.train_pictures) or request.concepts.parent
    command = (
        *("train", str(shards), "--site", site, "--out", str(out), "--resume"),
        *("--architecture", request.architecture, "--k", str(request.k)),
        *("--l1", str(request.l1), "--tokens", str(request.tokens), *width),
        *("--lr", str(request.learning_rate), "--device", request.device),
        *("--model", request.model, "--pictures", str(pictures)),
        *("--seed", str(request.seed)),
    )
    return Stage(f"train {site}", command, out / "figures.json")


def _import(request: LearnRequest, site: str, out: Path) -> Stage:
    pictures = _folder(request.train_pictures)
    shown = () if pictures is None else ("--pictures", str(pictures))
    command = (
        *("import", request.saes[site], "--model", request.model, "--site", site),
        *("--out", str(out), *shown),
    )
    return Stage(f"import {site}", command, out / "bundle.json")


def _select(request: LearnRequest, site: str) -> Stage:
    out = request.folder / f"selection-{site}.json"
    command = (
        *("select", "--sae", str(request.sae_path(site)), "--site", site),
        *("--harvest", str(request.folder / "harvest")),
        *("--concepts", str(request.concepts), "--score", request.score),
        *("--k", str(request.latents), "--model", request.model, "--out", str(out)),
        *(_engine(request) if request.score == "causal" else ()),
    )
    return Stage(f"select {site}", command, out)


def _option(config: CalibrationConfig, name: str) -> tuple[str, str]:
    return f"--{name.replace('_', '-')}", str(getattr(config, name))


def _calibrate(request: LearnRequest) -> Stage:
    config = request.calibration
    pairs = [
        (
            *("--sae", f"{site}={request.sae_path(site)}"),
            *("--selection", str(request.folder / f"selection-{site}.json")),
        )
        for site in request.sites
    ]
    command = (
        *("calibrate", "--model", request.model, "--out", str(request.out)),
        *(part for pair in pairs for part in pair),
        *("--concepts", str(request.concepts)),
        *(part for name in _SEARCH for part in _option(config, name)),
        *(part for one in config.rankings for part in ("--ranking", one)),
        *(part for one in config.actions for part in ("--action", one)),
        "--prune" if config.prune else "--no-prune",
        *("--concepts-per-engine", str(request.concepts_per_engine)),
        *_actors(request),
        *_engine(request),
    )
    return Stage("calibrate", command, request.out / "bundle.json")


def _inspect(request: LearnRequest) -> Stage:
    out = request.folder / "report.html"
    command = (
        *("inspect", str(request.out), "--model", request.model),
        *("--concepts", str(request.concepts), "--split", "scoring"),
        *("--out", str(out)),
    )
    return Stage("inspect", command, out, only_shows=True)


Announce = Callable[[int, int, str, str], None]
"""Told the number of a stage, of how many, its name, and what becomes of it."""
Run = Callable[[Sequence[str]], int]


def run_sauce(arguments: Sequence[str]) -> int:
    """Run ``sauce`` in a process of its own; return its exit status."""
    command = [sys.executable, "-m", "vllm_sauce.cli", *arguments]
    return subprocess.run(command, check=False).returncode


def learn(
    request: LearnRequest,
    announce: Announce = lambda number, total, name, what: None,
    run: Run = run_sauce,
) -> dict[str, float]:
    """Run the stages that are not done; return the seconds of each that is.

    Raises: LearnError naming the stage that failed; ConfigError if the folder is
    another run's
    """
    _begin(request)
    seconds = _seconds(request)
    todo = stages(request)
    for number, stage in enumerate(todo, 1):
        if stage.name in seconds and stage.result.exists():
            announce(number, len(todo), stage.name, "done before")
            continue
        announce(number, len(todo), stage.name, "running")
        before = time.monotonic()
        status = run(stage.command)
        some_failed = status == 1 and stage.failures and stage.failures.exists()
        if some_failed:
            announce(number, len(todo), stage.name, f"see {stage.failures}")
        elif status != 0 and stage.only_shows:
            announce(number, len(todo), stage.name, "failed; the rest is whole")
            continue
        elif status != 0:
            raise LearnError(
                f"{stage.name} ended with status {status}; mend what it says above and "
                "run the same command to go on from there"
            )
        if stage.result.name == "harvest.done" and stage.result.parent.is_dir():
            write_whole(stage.result, b"", LearnError)
        if not stage.result.exists():
            raise LearnError(f"{stage.name} left no {stage.result}")
        spent = seconds.get(stage.name, 0.0) + time.monotonic() - before
        seconds[stage.name] = round(spent, 1)
        _note(request, seconds)
    return seconds


def _identity(request: LearnRequest) -> dict[str, Any]:
    told = {name: value for name, value in asdict(request).items() if name not in _HOW}
    return {
        **json.loads(json.dumps(told, default=str)),
        "model": fingerprint_model(request.model).model_dump(mode="json"),
        "concepts_sha256": file_sha256(request.concepts),
    }


def _begin(request: LearnRequest) -> None:
    if not request.concepts.is_file():
        raise ConfigError(f"no concepts.yaml at {request.concepts}")
    folder, told = request.folder, _identity(request)
    path = folder / RUN_FILE
    if path.exists():
        before = json.loads(path.read_text())
        names = sorted(n for n in {*before, *told} if before.get(n) != told.get(n))
        if names:
            raise ConfigError(
                f"{folder} is of a run that differs in {', '.join(names)}; run as "
                "before to go on with it, or give another --out"
            )
        return
    if request.out.exists():
        raise ConfigError(f"{request.out} is there already; give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(told, indent=1) + "\n").encode(), LearnError)


def _seconds(request: LearnRequest) -> dict[str, float]:
    try:
        found: dict[str, float] = json.loads((request.folder / STAGES_FILE).read_text())
    except FileNotFoundError:
        return {}
    return found


def _note(request: LearnRequest, seconds: Mapping[str, float]) -> None:
    text = json.dumps(dict(seconds), indent=1) + "\n"
    write_whole(request.folder / STAGES_FILE, text.encode(), LearnError)
