# SPDX-License-Identifier: Apache-2.0
"""The stages of ``sauce learn``: their order, what is run again, what is refused."""

import json
from dataclasses import asdict, replace

import pytest

from tests.places import TINY
from vllm_sauce.errors import ConfigError, LearnError
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.harvest.settings import HarvestSettings
from vllm_sauce.learning.learn import learn
from vllm_sauce.learning.request import LearnRequest
from vllm_sauce.learning.selection.settings import SelectSettings
from vllm_sauce.learning.stages import stages
from vllm_sauce.learning.training.settings import SAETraining
from vllm_sauce.scale.cluster import Resources


@pytest.fixture
def request_(tmp_path):
    (tmp_path / "concepts.yaml").write_text("version: 1\n")
    return LearnRequest(
        model=str(TINY / "model"),
        sites=("vision", "decoder.1"),
        concepts=tmp_path / "concepts.yaml",
        out=tmp_path / "bundle",
        saes={"decoder.1": str(TINY / "latents")},
    )


class Sauce:
    """Stands where the processes do: leaves what they would leave, or fails."""

    def __init__(self, request, fails_at=()):
        self.stages = stages(request)
        self.fails_at, self.ran = fails_at, []

    def __call__(self, command, told):
        self.ran.append(command)
        if command in self.fails_at:
            return 2
        (result,) = (
            stage.result
            for stage in self.stages
            if (stage.name.split()[0], stage.request) == (command, told)
        )
        result.parent.mkdir(parents=True, exist_ok=True)
        if result.name != "harvest.done":
            result.write_text("{}")
        return 0


def names(request):
    return [stage.name for stage in stages(request)]


def test_what_is_given_is_not_trained(request_):
    assert names(request_) == [
        "harvest concepts",
        "train vision",
        "fit vision",
        "fit decoder.1",
        "select vision",
        "select decoder.1",
        "calibrate",
        "inspect",
    ]
    given = replace(request_, saes={"vision": "org/public", "decoder.1": "other"})
    assert names(given)[1:3] == ["import vision", "import decoder.1"]
    more = replace(request_, train_pictures=TINY / "pictures", report=False)
    assert names(more)[:3] == [
        "harvest concepts", "harvest training pictures", "train vision"
    ]  # fmt: skip


def requests(request):
    return {stage.name: stage.request for stage in stages(request)}


def test_the_stages_hand_their_results_on(request_):
    found = requests(request_)
    sae = request_.folder / "sae-vision"
    assert found["train vision"].out == found["fit vision"].sae == sae
    rows = request_.folder / "rows-vision"
    assert found["fit vision"].out == found["select vision"].sae == rows
    assert found["fit vision"].harvest == found["harvest concepts"].out
    assert found["train vision"].harvest == found["harvest concepts"].out
    assert found["train vision"].resume
    assert found["fit decoder.1"].sae == TINY / "latents"
    calibrated = found["calibrate"]
    assert calibrated.saes == {
        site: found[f"fit {site}"].out for site in request_.sites
    }
    for site, selection in zip(request_.sites, calibrated.selections, strict=True):
        assert found[f"select {site}"].out == selection
        assert found[f"select {site}"].k == request_.latents
    assert found["inspect"].bundle == str(calibrated.out)


def test_rows_alone_need_no_sae_and_latents_alone_no_rows(request_):
    given = {"decoder.1": str(TINY / "latents")}
    rows = replace(request_, saes={}, edits="rows")
    assert names(rows)[1:4] == ["fit vision", "fit decoder.1", "select vision"]
    assert requests(rows)["fit vision"].sae is None
    latents = replace(request_, edits="latents")
    assert names(latents)[1:4] == ["train vision", "select vision", "select decoder.1"]
    found = requests(latents)
    sae = request_.folder / "sae-vision"
    assert found["select vision"].sae == found["calibrate"].saes["vision"] == sae
    with pytest.raises(ConfigError, match="--edits rows needs no SAE"):
        replace(request_, saes=given, edits="rows")
    topk = SAETraining(architecture="topk")
    with pytest.raises(ConfigError, match="beside the latents of a topk SAE"):
        replace(request_, training=topk)
    assert replace(request_, training=topk, edits="latents").trained


def test_the_stages_are_told_their_parts_of_the_request(request_):
    asked = replace(
        request_,
        engine_args={"dtype": "float32"},
        harvest=HarvestSettings(max_tokens=3),
        training=SAETraining(architecture="standard", seed=7),
        selection=SelectSettings(score="causal", causal_examples=2),
        calibration=CalibrationConfig(finalists=3, rankings=("file",)),
        resources=Resources(actors=2),
    )
    found = requests(asked)
    assert found["harvest concepts"].harvest is asked.harvest
    assert found["train vision"].training is asked.training
    given = asdict(found["select vision"])
    assert asdict(asked.selection).items() <= given.items()
    assert found["calibrate"].config is asked.calibration
    for name in ("harvest concepts", "calibrate"):
        assert found[name].resources is asked.resources
        assert found[name].engine_args is asked.engine_args
    assert found["select vision"].engine_args == asked.engine_args
    assert requests(request_)["select vision"].engine_args == {}


def test_a_table_of_pictures_is_trained_on(request_):
    more = replace(request_, train_pictures=TINY / "more.jsonl")
    found = requests(more)
    shown = found["harvest training pictures"].shown
    assert (shown.table, shown.image_column) == (TINY / "more.jsonl", "image")
    assert found["train vision"].fidelity.pictures == (TINY,)
    assert found["train vision"].harvest == found["harvest training pictures"].out


def test_texts_are_trained_on(request_):
    """At a decoder site; the tower would see nothing."""
    few = replace(request_, sites=("decoder.1",), saes={}, fidelity_samples=3)
    found = requests(replace(few, train_texts=TINY / "more.txt"))
    shown = found["harvest training texts"].shown
    assert (shown.texts, shown.pictures, shown.table) == (TINY / "more.txt", None, None)
    assert found["harvest training texts"].sites == ("decoder.1",)
    assert found["train decoder.1"].harvest == found["harvest training texts"].out
    assert found["train decoder.1"].fidelity.samples == 3
    public = replace(few, saes={"decoder.1": "org/public"}, train_texts=TINY / "t")
    assert requests(public)["import decoder.1"].texts == TINY / "t"
    with pytest.raises(ConfigError, match="the vision site sees no texts"):
        replace(request_, train_texts=TINY / "more.txt")
    with pytest.raises(ConfigError, match="either --train-pictures or --train-texts"):
        replace(few, train_texts=TINY / "t", train_pictures=TINY)


def test_a_failed_stage_stops_and_is_where_it_goes_on(request_):
    failing = Sauce(request_, fails_at=("calibrate",))
    with pytest.raises(LearnError, match="calibrate ended with status 2"):
        learn(request_, run=failing)
    before = ["harvest", "train", "fit", "fit", "select", "select", "calibrate"]
    assert failing.ran == before
    again = Sauce(request_)
    told = []
    seconds = learn(request_, again, lambda *said: told.append(said[2:]))
    assert again.ran == ["calibrate", "inspect"]
    assert ("train vision", "done before") in told
    assert list(seconds) == names(request_)
    assert learn(request_, run=Sauce(request_, fails_at=("harvest",))) == seconds


def test_a_report_that_fails_loses_nothing(request_):
    told = []
    failing = Sauce(request_, fails_at=("inspect",))
    seconds = learn(request_, failing, lambda *said: told.append(said[2:]))
    assert ("inspect", "failed; the rest is whole") in told
    assert (request_.out / "bundle.json").exists()
    assert list(seconds) == names(request_)[:-1]
    again = Sauce(request_)
    learn(request_, run=again)
    assert again.ran == ["inspect"]


@pytest.mark.parametrize("name", ["harvest", "train", "fit", "select", "calibrate"])
def test_a_stage_that_left_its_result_is_done(request_, name):
    """However this process ended before it could write down that the stage had."""
    sauce = Sauce(request_)

    def is_killed(command, told):
        status = sauce(command, told)
        return -15 if command == name else status

    with pytest.raises(LearnError, match="was killed by signal 15"):
        learn(request_, run=is_killed)
    again = Sauce(request_)
    learn(request_, run=again)
    # A harvest's shards are many; it finds for itself which are there.
    twice = ["harvest"] if name == "harvest" else []
    every = [one.split()[0] for one in names(request_)]
    assert sauce.ran + again.ran == twice + every


def test_a_bundle_that_came_before_its_stages_is_not_taken_for_theirs(request_):
    """The stage is run, and refuses to replace it."""
    with pytest.raises(LearnError, match="harvest concepts ended"):
        learn(request_, run=Sauce(request_, fails_at=("harvest",)))
    request_.out.mkdir()
    (request_.out / "bundle.json").write_text("of somebody else")
    refusing = Sauce(request_, fails_at=("calibrate",))
    with pytest.raises(LearnError, match="calibrate ended with status 2"):
        learn(request_, run=refusing)
    assert refusing.ran[-1] == "calibrate"
    assert (request_.out / "bundle.json").read_text() == "of somebody else"


def test_a_lost_result_is_made_again(request_):
    learn(request_, run=Sauce(request_))
    (request_.folder / "selection-vision.json").unlink()
    again = Sauce(request_)
    learn(request_, run=again)
    assert again.ran == ["select"]


def test_a_stage_that_leaves_nothing_is_named(request_):
    with pytest.raises(LearnError, match="harvest concepts left no"):
        learn(request_, run=lambda command, told: 0)

    def trains_nothing(command, told):
        return 0 if command == "train" else Sauce(request_)(command, told)

    with pytest.raises(LearnError, match="train vision left no"):
        learn(request_, run=trains_nothing)


def test_single_samples_may_fail(request_):
    def harvest_fails_one(command, told):
        if command != "harvest":
            return Sauce(request_)(command, told)
        folder = request_.folder / "harvest"
        folder.mkdir()
        (folder / "failures.jsonl").write_text("{}\n")
        return 1

    told = []
    learn(request_, harvest_fails_one, lambda *said: told.append(said[3]))
    assert any("failures.jsonl" in said for said in told)
    fresh = replace(request_, out=request_.out.with_name("other"))
    # A crash ends with 1 as well, but leaves no list of failures.
    with pytest.raises(LearnError, match="harvest concepts ended with status 1"):
        learn(fresh, run=lambda command, told: 1)
    with pytest.raises(LearnError, match="harvest concepts was killed by signal 9"):
        learn(fresh, run=lambda command, told: -9)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"training": SAETraining(training_tokens=5000)}, "training.training_tokens"),
        ({"training": SAETraining(seed=1)}, "training.seed"),
        ({"calibration": CalibrationConfig(watched=1)}, "calibration.watched"),
        ({"selection": SelectSettings(score="rate")}, "selection.score"),
        ({"harvest": HarvestSettings(max_tokens=1)}, "harvest.max_tokens"),
        ({"sites": ("decoder.1",)}, "sites"),
        ({"latents": 3}, "latents"),
        ({"saes": {}}, "saes"),
    ],
)
def test_another_runs_folder_is_refused(request_, changes, named):
    learn(request_, run=Sauce(request_))
    with pytest.raises(ConfigError, match=f"differs in {named};"):
        learn(replace(request_, **changes), run=Sauce(request_))


def test_where_it_runs_may_change(request_):
    learn(request_, run=Sauce(request_))
    told = json.loads((request_.folder / "learn.json").read_text())
    elsewhere = replace(
        request_,
        engine_args={"max_model_len": 99},
        report=False,
        resources=Resources(actors=3),
        training=SAETraining(device="cuda"),
        harvest=HarvestSettings(in_flight=3),
        calibration=CalibrationConfig(concepts_per_engine=3),
    )
    again = Sauce(elsewhere)
    learn(elsewhere, run=again)
    assert again.ran == []
    assert json.loads((request_.folder / "learn.json").read_text()) == told


def test_other_concepts_are_another_run(request_):
    learn(request_, run=Sauce(request_))
    request_.concepts.write_text("version: 1 # changed\n")
    with pytest.raises(ConfigError, match="differs in concepts_sha256"):
        learn(request_, run=Sauce(request_))
    missing = replace(request_, concepts=request_.out / "no.yaml")
    with pytest.raises(ConfigError, match="no concepts.yaml"):
        learn(missing, run=Sauce(request_))


def test_a_bundle_that_is_there_is_not_touched(request_):
    request_.out.mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        learn(request_, run=Sauce(request_))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sites": ()}, "name a site"),
        ({"sites": ("vision", "vision")}, "each site once"),
        ({"sites": ("vision",)}, "given for decoder.1, which is not"),
        ({"sites": ("tower",)}, "a site is"),
        ({"latents": 0}, "latents must be at least 1"),
    ],
)
def test_sites_that_make_no_sense_are_refused(request_, options, words):
    with pytest.raises(ConfigError, match=words):
        replace(request_, **options)


def test_parts_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="score is one of .*attribution, got 'charm'"):
        SelectSettings(score="charm")
    with pytest.raises(ConfigError, match="actors must be at least 1"):
        Resources(actors=0)
    with pytest.raises(ConfigError, match="concepts_per_engine must be at least 1"):
        CalibrationConfig(concepts_per_engine=0)


def test_a_concept_that_is_not_forgotten_does_not_stop_a_run(request_):
    """Calibration says so by its status, and the report is made all the same."""
    sauce = Sauce(request_)

    def run(command, told):
        return sauce(command, told) or (3 if command == "calibrate" else 0)

    seconds = learn(request_, run)
    assert [*seconds] == names(request_)
