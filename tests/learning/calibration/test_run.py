# SPDX-License-Identifier: Apache-2.0
"""Calibration of two concepts of sauce-tiny, in a real engine, resumed and refused."""

import json
import os
import shutil
import signal
from dataclasses import replace

import pytest

from tests.cli.sauce import sauce
from tests.engines import starts_engine
from tests.places import TINY
from tiny.concepts import DOMAIN_OF
from tiny.exam import balanced_pictures
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.errors import BundleMismatchError, ConfigError
from vllm_sauce.evaluation.asking.vllm_engine import EngineAsker
from vllm_sauce.learning.calibration import run, setting
from vllm_sauce.learning.calibration.config import CalibrateRequest, CalibrationConfig
from vllm_sauce.learning.calibration.record import record_path
from vllm_sauce.learning.calibration.report import (
    FRONTIER_FILE,
    table,
    write_frontiers,
)
from vllm_sauce.learning.calibration.run import (
    GroupActor,
    calibrate_bundle,
)
from vllm_sauce.learning.selection.selection_file import (
    RankedLatent,
    SelectedConcept,
    SelectionFile,
)
from vllm_sauce.scale.cluster import Resources

MODEL, BUNDLE = TINY / "model", TINY / "latents"
NAMES = ("pig", "wood")
ALIKE = ("cat", "wood")
"""Concepts that may choose from the same, where k is 16."""
SITES = ("vision", "decoder.1")
ENGINE = {"dtype": "float32", "max_model_len": 256, "kv_cache_memory_bytes": 1 << 26}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Pictures with labels, and the latents that the shipped edits use."""
    folder = tmp_path_factory.mktemp("world")
    rows = []
    for number, picture in enumerate(balanced_pictures("calibration", 10)):
        picture.image.save(folder / f"{number}.png")
        row = {"file": f"{number}.png", "concepts": list(picture.concepts)}
        rows.append(json.dumps(row))
    (folder / "labels.jsonl").write_text("\n".join(rows))
    text = (TINY / "concepts.yaml").read_text()
    (folder / "concepts.yaml").write_text(
        text.replace("pictures/labels.jsonl", "labels.jsonl")
    )
    for site in SITES:
        shipped(site).write(folder / f"{site}.json")
    return folder


def shipped(site, names=NAMES):
    """A selection as ``sauce select`` would write it; the order is the catalogue's."""
    catalogue = Bundle.load(BUNDLE, weights=False).catalogue
    concepts = {}
    for name in names:
        edit = catalogue.concept(name).edits.get(site)
        latents = [] if edit is None else edit.latents
        concepts[name] = SelectedConcept(
            domain=DOMAIN_OF[name],
            num_samples=(4, 4),
            latents=[
                RankedLatent(
                    latent=latent,
                    scores={"share": -float(place)},
                    mean_acts=(1.0, 0.0),
                    firing_rate=(1.0, 0.0),
                    max_acts=(4.0, 0.5),
                )
                for place, latent in enumerate(latents)
            ],
        )
    return SelectionFile(
        fingerprint=fingerprint_model(MODEL),
        site=site,
        d_sae=2048,
        split="selection",
        score="share",
        k=32,
        roles=["image"],
        concepts=concepts,
    )


@pytest.fixture(scope="module")
def request_(world, tmp_path_factory):
    return CalibrateRequest(
        model=str(MODEL),
        saes=dict.fromkeys(SITES, BUNDLE),
        selections=tuple(world / f"{site}.json" for site in SITES),
        concepts=world / "concepts.yaml",
        out=tmp_path_factory.mktemp("out") / "bundle",
        names=NAMES,
        config=CalibrationConfig(
            k=(4, 16),
            actions=("scale -1", "scale -4", "clamp 1"),
            gates=(0.0, 1.0),
            positives=6,
            negatives=6,
            watched=1,
            screen=0.3,
            finalists=3,
            passes=1,
            retain_floor=0.1,
        ),
        engine_args=ENGINE,
    )


@pytest.fixture(scope="module")
@starts_engine
def found(request_):
    return calibrate_bundle(request_)


def entries(request):
    """What the run keeps of each concept."""
    files = sorted(request.folder.glob("concept-*.json"))
    return {e["concept"]: e for e in (json.loads(f.read_text()) for f in files)}


def test_what_is_chosen_forgets_and_keeps(found, request_):
    loaded = Bundle.load(request_.out)
    loaded.check_model(MODEL)
    assert loaded.catalogue.names() == tuple(sorted(NAMES))
    for name, entry in entries(request_).items():
        base, edited = (entry["calibration"][key] for key in ("base", "edited"))
        assert base["UAg"] <= 0.2 and base["IRA"] >= 0.8
        assert edited["HM"] >= 0.6
        concept = loaded.catalogue.concept(name)
        mode = concept.provenance["measured_as"]
        assert mode == {"dtype": "float32", "eager": True}
        scoring = {k: v for k, v in concept.scores.items() if "base" not in k}
        assert scoring == entry["scoring"]["edited"]
        assert (scoring["HM"] or 0.0) > 0.4


def worth(trial):
    """Rank a trial as docs/calibrate.md says, from what is kept of it."""
    sure, scores = trial["sure"], trial["scores"]
    keeps = sure["loss"] <= 0.1 and sure["worst"] <= 0.35
    forgets = min(scores["UAg"], scores["UAd"]) >= 0.8
    better = trial["forgetting"] if keeps else trial["objective"]
    return keeps and sure["forgetting"] >= 0.8, forgets, keeps, better


def test_every_trial_is_kept_and_the_best_is_chosen(found, request_):
    for entry in entries(request_).values():
        whole = [t for t in entry["trials"] if t["share"] == 1.0]
        searched = [t for t in entry["trials"] if t["share"] < 1.0]
        # Two sites, two k, two gates, three actions: a start, then 1 + 1 + 2 at least.
        assert len(searched) >= 5
        settings = [json.dumps([t["share"], t["setting"]]) for t in searched]
        assert len(settings) == len(set(settings))
        unpruned = [
            t for t in whole if not any("without" in s for s in t["setting"].values())
        ]
        assert len(unpruned) >= 3
        chosen = next(t for t in whole if t["setting"] == entry["setting"])
        assert worth(chosen) >= max(map(worth, unpruned))
        # No step further was taken from what is surely forgotten.
        if len(unpruned) > 3:
            assert min(t["sure"]["forgetting"] for t in unpruned) < 0.8
        base = entry["calibration"]["base"]
        lost = max(base[name] - chosen["scores"][name] for name in ("IRA", "CRA"))
        assert entry["within_floor"] == (
            lost <= 0.1 + 1e-4 and chosen["worst_other"]["lost"] <= 0.35 + 1e-4
        )
        for trial in entry["frontier"]:
            beaten = [
                t
                for t in whole
                if t["forgetting"] > trial["forgetting"]
                and t["keeping"] > trial["keeping"]
            ]
            assert not beaten


def dies_once():
    """Return an actor's class; made here, it is sent to Ray as it is."""

    class DiesOnce(GroupActor):
        """Calibrates for real, but the first process that is called dies of it."""

        def __call__(self, row, note=lambda what, done, total: None):
            mark = self.inputs.request.folder / "died"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(row, note)

    return DiesOnce


def test_an_actor_that_is_killed_finds_the_same(found, request_, tmp_path, monkeypatch):
    """The search is the same wherever it runs; what a dead actor had is done anew.

    It dies while the common setting is sought, which is kept when it is found.
    """
    for site in SITES:
        shipped(site, ALIKE).write(tmp_path / f"{site}.json")
    spread = replace(
        request_,
        out=tmp_path / "bundle",
        selections=tuple(tmp_path / f"{site}.json" for site in SITES),
        names=ALIKE,
        # Shorter than the one above: what is asked is that a dead actor's is done.
        config=replace(
            request_.config,
            concepts_per_engine=1,
            k=(16,),
            actions=("scale -4",),
            finalists=1,
        ),
        resources=Resources(actors=1),
    )
    told = []
    monkeypatch.setattr(run, "GroupActor", dies_once())
    bundle = calibrate_bundle(spread, lambda *said: told.append(said))
    assert (spread.folder / "died").exists()
    assert told == [("concepts", done, 2) for done in range(3)]
    kept = entries(spread)
    assert set(kept) == set(ALIKE)
    (common,) = spread.folder.glob("common-*.json")
    # A table of results would have given each setting all fields of all.
    assert "null" not in common.read_text()
    best = json.loads(common.read_text())[0]["setting"]
    for name in ALIKE:
        mine = bundle.catalogue.concept(name)
        assert set(mine.edits) <= set(SITES)
        assert (mine.scores["HM"] or 0) > 0.4
        assert any(one["setting"] == best for one in kept[name]["trials"])
        pruned = [
            {k: v for k, v in one.items() if k != "without"}
            for one in kept[name]["setting"].values()
        ]
        assert mine.provenance["common"] == (pruned == list(best.values()))
    here, there = (one.catalogue.concept("wood").scores for one in (bundle, found))
    base = {k: v for k, v in here.items() if k.startswith("base_")}
    assert base == {k: v for k, v in there.items() if k.startswith("base_")}
    # What is left of a killed run takes the common setting that was found.
    record_path(spread.folder, "cat").unlink()

    def sought_again(*args):
        raise AssertionError("a common setting is sought again")

    monkeypatch.setattr(run, "common_settings", sought_again)
    again = calibrate_bundle(replace(spread, resources=None, overwrite=True))
    assert set(again.catalogue.names()) == set(ALIKE)


def test_a_finished_run_starts_no_engine(found, request_, monkeypatch):
    def no_engine(*args, **kwargs):
        raise AssertionError("an engine was started")

    monkeypatch.setattr(EngineAsker, "of_candidates", no_engine)
    again = calibrate_bundle(replace(request_, overwrite=True))
    assert again.digest == found.digest
    missing = next(request_.folder.glob("concept-*.json"))
    kept = missing.read_bytes()
    missing.unlink()
    with pytest.raises(AssertionError, match="an engine was started"):
        calibrate_bundle(replace(request_, overwrite=True))
    missing.write_bytes(kept)


def test_another_runs_folder_is_refused(found, request_, monkeypatch):
    other = replace(request_.config, retain_floor=0.5)
    with pytest.raises(ConfigError, match="holds another calibration"):
        calibrate_bundle(replace(request_, config=other, overwrite=True))
    with pytest.raises(ConfigError, match="--overwrite replaces it"):
        calibrate_bundle(request_)
    # Begun by a version whose gates were the quantiles themselves.
    monkeypatch.setattr(setting, "GATE_MARGIN", 0.0)
    with pytest.raises(ConfigError, match="holds another calibration"):
        calibrate_bundle(replace(request_, overwrite=True))


def test_the_frontier_is_drawn(found, request_):
    path = write_frontiers(request_.folder)
    assert path == request_.folder / FRONTIER_FILE
    figures = path.read_text().split("<figure>")[1:]
    entries = [
        json.loads(path.read_text()) for path in request_.folder.glob("concept-*.json")
    ]
    entries.sort(key=lambda entry: entry["concept"])
    assert [entry["concept"] for entry in entries] == sorted(NAMES)
    for figure, entry in zip(figures, entries, strict=True):
        assert f"<figcaption>{entry['concept']} <span>" in figure
        tried, frontier, chosen = figure.split("<g ")[1:]
        whole = [t for t in entry["trials"] if t["share"] == 1.0]
        assert tried.count("<circle") == len(whole)
        assert frontier.count("<circle") == len(entry["frontier"])
        assert chosen.count("<circle") == 1
        (best,) = [t for t in whole if t["setting"] == entry["setting"]][:1]
        # Where nothing is forgotten and kept: 44, 256; where everything is: 308, 10.
        at = 44 + best["forgetting"] * 264, 256 - best["keeping"] * 246
        assert f'cx="{at[0]:.1f}" cy="{at[1]:.1f}"' in chosen


def test_a_name_in_the_drawing_is_text(tmp_path):
    trial = {"share": 1.0, "forgetting": 1.0, "keeping": 0.5, "setting": {"<i>": {}}}
    entry = {"concept": "<b>", "setting": {}, "trials": [trial], "frontier": [trial]}
    (tmp_path / "concept-0.json").write_text(json.dumps(entry))
    text = write_frontiers(tmp_path).read_text()
    assert "<b>" not in text and "<i>" not in text and "&lt;b&gt;" in text


def test_foreign_inputs_are_refused(world, request_, tmp_path):
    fresh = {"out": tmp_path / "b"}
    with pytest.raises(ConfigError, match="one SAE and one selection"):
        replace(request_, **fresh, selections=request_.selections[:1])
    with pytest.raises(ConfigError, match="has no concept 'unicorn'"):
        calibrate_bundle(replace(request_, **fresh, names=("unicorn",)))
    raw = json.loads((world / "vision.json").read_text())
    raw["fingerprint"]["text"]["hidden_size"] = 7
    (tmp_path / "other.json").write_text(json.dumps(raw))
    with pytest.raises(BundleMismatchError, match="made on another model"):
        calibrate_bundle(
            replace(
                request_,
                **fresh,
                selections=(tmp_path / "other.json", request_.selections[1]),
            )
        )
    twice = (request_.selections[0], request_.selections[0])
    with pytest.raises(ConfigError, match="the selections are for vision"):
        calibrate_bundle(replace(request_, **fresh, selections=twice))
    assert not (tmp_path / "b").exists()


def test_the_command_refuses_another_settings_folder(found, request_, tmp_path):
    out = tmp_path / "bundle"
    shutil.copytree(request_.folder, tmp_path / "bundle.calibration")
    done = sauce(
        *("calibrate", "--model", MODEL, "--out", out),
        *(part for s in SITES for part in ("--sae", f"{s}={BUNDLE}")),
        *(p for s in request_.selections for p in ("--selection", s)),
        *("--concepts", request_.concepts, "--concept", "pig"),
    )
    # Its settings are the command's own, so this folder is another run's.
    assert done.exit_code == 2
    assert "holds another calibration" in done.stderr
    assert not out.exists()


def test_the_table_names_every_concept(found):
    from rich.console import Console

    console = Console(record=True, width=120)
    console.print(table(found.catalogue))
    text = console.export_text()
    for name, concept in found.catalogue.items():
        assert name in text
        assert f"{100 * (concept.scores['HM'] or 0):.1f}" in text
