# SPDX-License-Identifier: Apache-2.0
"""The stages of ``sauce learn``: their order, what is run again, what is refused."""

import inspect
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest

from vllm_sauce.cli.calibrate import calibrate
from vllm_sauce.cli.learn import learn as learn_command
from vllm_sauce.errors import ConfigError, LearnError
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.learn import LearnRequest, learn, stages

TINY = Path(__file__).parents[2] / "examples/tiny"


@pytest.fixture
def request_(tmp_path):
    (tmp_path / "concepts.yaml").write_text("version: 1\n")
    return LearnRequest(
        model=str(TINY / "model"),
        sites=("vision", "decoder.1"),
        concepts=tmp_path / "concepts.yaml",
        out=tmp_path / "bundle",
        saes={"decoder.1": str(TINY / "bundle")},
    )


class Sauce:
    """Stands where the processes do: leaves what they would leave, or fails."""

    def __init__(self, request, fails_at=()):
        self.results = {stage.command: stage.result for stage in stages(request)}
        self.fails_at, self.ran = fails_at, []

    def __call__(self, command):
        self.ran.append(command[0])
        if command[0] in self.fails_at:
            return 2
        result = self.results[tuple(command)]
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


def test_the_stages_hand_their_results_on(request_):
    commands = {stage.name: stage.command for stage in stages(request_)}

    def value(stage, option):
        command = commands[stage]
        return [command[i + 1] for i, word in enumerate(command) if word == option]

    sae = str(request_.folder / "sae-vision")
    assert value("train vision", "--out") == [sae]
    assert value("select vision", "--sae") == [sae]
    assert value("select decoder.1", "--sae") == [str(TINY / "bundle")]
    assert f"vision={sae}" in value("calibrate", "--sae")
    for site in request_.sites:
        assert value(f"select {site}", "--out")[0] in value("calibrate", "--selection")
    assert commands["inspect"][1] == value("calibrate", "--out")[0]


def test_calibration_is_told_how_to_search(request_):
    config = CalibrationConfig(
        retain_floor=0.5, worst_floor=0.75, prefer="balance", positives=3, negatives=4,
        watched=5, screen=0.125, passes=7, finalists=8,
    )  # fmt: skip
    asked = replace(request_, calibration=config)
    command = next(s.command for s in stages(asked) if s.name == "calibrate")
    told = {
        name: command[command.index(f"--{name.replace('_', '-')}") + 1]
        for name in ("retain_floor", "worst_floor", "prefer", "positives", "negatives",
                     "watched", "screen", "passes", "finalists")
    }  # fmt: skip
    assert told == {name: str(getattr(config, name)) for name in told}
    actions = [b for a, b in pairwise(command) if a == "--action"]
    assert actions == list(config.actions)
    assert "--prune" in command and "--ranking" not in command
    narrow = replace(config, rankings=("share", "file"), prune=False)
    found = stages(replace(request_, calibration=narrow))
    stage = next(one for one in found if one.name == "calibrate")
    assert [b for a, b in pairwise(stage.command) if a == "--ranking"] == [
        "share",
        "file",
    ]
    assert "--no-prune" in stage.command


@pytest.mark.parametrize("command", [calibrate, learn_command])
def test_the_commands_defaults_are_the_searchs(command):
    defaults = inspect.signature(command).parameters
    config = asdict(CalibrationConfig())
    shared = set(defaults) & set(config) - {"k", "seed"}
    assert len(shared) == 10
    assert {name: defaults[name].default for name in shared} == {
        name: config[name] for name in shared
    }


def test_a_failed_stage_stops_and_is_where_it_goes_on(request_):
    failing = Sauce(request_, fails_at=("calibrate",))
    with pytest.raises(LearnError, match="calibrate ended with status 2"):
        learn(request_, run=failing)
    assert failing.ran == ["harvest", "train", "select", "select", "calibrate"]
    again = Sauce(request_)
    told = []
    seconds = learn(request_, lambda *said: told.append(said[2:]), again)
    assert again.ran == ["calibrate", "inspect"]
    assert ("train vision", "done before") in told
    assert list(seconds) == names(request_)
    assert learn(request_, run=Sauce(request_, fails_at=("harvest",))) == seconds


def test_a_report_that_fails_loses_nothing(request_):
    told = []
    failing = Sauce(request_, fails_at=("inspect",))
    seconds = learn(request_, lambda *said: told.append(said[2:]), failing)
    assert ("inspect", "failed; the rest is whole") in told
    assert (request_.out / "bundle.json").exists()
    assert list(seconds) == names(request_)[:-1]
    again = Sauce(request_)
    learn(request_, run=again)
    assert again.ran == ["inspect"]


def test_a_lost_result_is_made_again(request_):
    learn(request_, run=Sauce(request_))
    (request_.folder / "selection-vision.json").unlink()
    again = Sauce(request_)
    learn(request_, run=again)
    assert again.ran == ["select"]


def test_a_stage_that_leaves_nothing_is_named(request_):
    with pytest.raises(LearnError, match="harvest concepts left no"):
        learn(request_, run=lambda command: 0)

    def trains_nothing(command):
        return 0 if command[0] == "train" else Sauce(request_)(command)

    with pytest.raises(LearnError, match="train vision left no"):
        learn(request_, run=trains_nothing)


def test_single_samples_may_fail(request_):
    def harvest_fails_one(command):
        if command[0] != "harvest":
            return Sauce(request_)(command)
        folder = request_.folder / "harvest"
        folder.mkdir()
        (folder / "failures.jsonl").write_text("{}\n")
        return 1

    told = []
    learn(request_, lambda *said: told.append(said[3]), harvest_fails_one)
    assert any("failures.jsonl" in said for said in told)
    fresh = replace(request_, out=request_.out.with_name("other"))
    # A crash ends with 1 as well, but leaves no list of failures.
    with pytest.raises(LearnError, match="harvest concepts ended with status 1"):
        learn(fresh, run=lambda command: 1)


def test_another_runs_folder_is_refused(request_):
    learn(request_, run=Sauce(request_))
    with pytest.raises(ConfigError, match="differs in tokens"):
        learn(replace(request_, tokens=5), run=Sauce(request_))
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
        ({"sites": ()}, "each site once"),
        ({"sites": ("vision", "vision")}, "each site once"),
        ({"sites": ("vision",)}, "given for decoder.1, which is not"),
        ({"sites": ("tower",)}, "a site is"),
        ({"score": "charm"}, "score is one of .*attribution, got 'charm'"),
        ({"actors": 0}, "actors must be at least 1"),
        ({"latents": 0}, "latents must be at least 1"),
    ],
)
def test_sites_that_make_no_sense_are_refused(request_, options, words):
    with pytest.raises(ConfigError, match=words):
        replace(request_, **options)
