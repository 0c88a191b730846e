# SPDX-License-Identifier: Apache-2.0
"""``sauce learn --config``: the same options from a file, mistakes with their line."""

import pytest

from tests.cli.sauce import sauce
from vllm_sauce.cli.app import parser
from vllm_sauce.errors import ConfigError

LEAST = "model: m\nsites: [vision]\nconcepts: c.yaml\nout: b\n"


def parsed(folder, text, *flags):
    """Return the request that a file and flags make."""
    file = folder / "learn.yaml"
    file.write_text(text)
    words = ["learn", "--config", str(file), *map(str, flags)]
    _, bound, _ = parser.parse_args(words, exit_on_error=False, print_error=False)
    return bound.arguments["request"]


def test_a_file_says_what_flags_say(tmp_path):
    found = parsed(
        tmp_path,
        LEAST
        + "engine_args: {dtype: float32, max_model_len: 256, enforce_eager: true}\n"
        + "report: no\n"
        + "training: {architecture: standard, lr: 2e-3, batch: 64, d_sae: null}\n"
        + "selection: {score: causal}\n"
        + "calibration: {finalists: 3, action: [scale 0, clamp 1], gates: 0.5}\n"
        + "resources: {ray: auto, actors: 2}\n",
    )
    flags = [
        *("learn", "--model", "m", "--site", "vision"),
        *("--concepts", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "b")),
        *("--engine-arg", "dtype=float32", "--engine-arg", "max-model-len=256"),
        *("--engine-arg", "enforce_eager=true", "--no-report"),
        *("--architecture", "standard", "--lr", "0.002", "--batch", "64"),
        *("--score", "causal", "--finalists", "3", "--gate", "0.5"),
        *("--action", "scale 0", "--action", "clamp 1", "--ray", "auto"),
        *("--actors", "2"),
    ]
    _, bound, _ = parser.parse_args(flags, exit_on_error=False, print_error=False)
    assert found == bound.arguments["request"]


def test_flags_override_the_file(tmp_path):
    text = LEAST + "training: {lr: 1, batch: 64}\nsae: {vision: a}\nprune: no\n"
    text = text.replace("prune: no", "calibration: {prune: no, action: [scale 0]}")
    flags = ("--lr", 2, "--site", "decoder.1", "--sae", "decoder.1=x", "--prune")
    found = parsed(tmp_path, text, *flags, "--action", "clamp 2")
    assert (found.training.learning_rate, found.training.batch_tokens) == (2.0, 64)
    assert found.sites == ("decoder.1",) and found.saes == {"decoder.1": "x"}
    assert found.calibration.prune and found.calibration.actions == ("clamp 2",)


def test_places_are_relative_to_the_file(tmp_path):
    (tmp_path / "model").mkdir()
    text = "model: model\nsite: vision\nconcepts: c.yaml\nout: /x/b\nsae: {vision: o/n}"
    found = parsed(tmp_path, text)
    assert found.model == str(tmp_path / "model")
    assert str(found.out) == "/x/b" and found.concepts == tmp_path / "c.yaml"
    assert found.saes == {"vision": "o/n"}  # A name on the hub.
    (tmp_path / "o/n").mkdir(parents=True)
    assert parsed(tmp_path, text).saes == {"vision": str(tmp_path / "o/n")}
    assert str(parsed(tmp_path, text, "--out", "here").out) == "here"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trainig: {}", "line 1: trainig is no option; did you mean training?"),
        ("a: 1", "line 1: a is no option: docs/reference.md has them all"),
        ("tokens: 3", "line 1: tokens is no option; did you mean training.tokens?"),
        (
            "training:\n  tokns: 3",
            "line 2: training.tokns is no option; did you mean tr",
        ),
        ("training:\n  seed: 3\n  prune: no", "did you mean calibration.prune?"),
        ("report: no\ntraining: 3", "line 2: KEY: VALUE lines are wanted, got 3"),
        ("- 3", "KEY: VALUE lines are wanted, got [3]"),
        ("", "KEY: VALUE lines are wanted, got None"),
        ("model: [a]", "line 1: model wants a value, got ['a']"),
        ("sae: x", "line 1: sae wants NAME: VALUE lines, got 'x'"),
        ("site: {a: b}", "line 1: site wants a list, got {'a': 'b'}"),
        ("site: a\nsites: b", "line 2: sites is site again"),
        ("model: a\nmodel: b", "line 2: 'model' is there twice"),
        ("a: [", "line 1"),
        ("plan: true", "plan is no option"),
        ("config: x", "config is no option"),
    ],
)
def test_a_mistake_in_the_file_is_told_with_its_line(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        parsed(tmp_path, text)
    assert said in str(caught.value) and str(tmp_path / "learn.yaml") in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("training: {lr: abc}", 'training.lr from {}, line 5: unable to convert "abc"'),
        (
            "calibration: {row_kinds: it}",
            'Invalid value "it" for calibration.row_kinds',
        ),
        ("report: perhaps", "report from {}, line 5"),
        ("engine_args: {a b: 1}", "wanted KEY=VALUE for the engine"),
        ("calibration: {retain_floor: 7}", "retain_floor is a share, got 7"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line(tmp_path, text, said):
    file = tmp_path / "learn.yaml"
    file.write_text(LEAST + text)
    done = sauce("learn", "--config", file)
    assert done.exit_code == 2 and said.format(file) in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_the_file_leaves_out_is_asked_for(tmp_path):
    (tmp_path / "learn.yaml").write_text("model: m\n")
    done = sauce("learn", "--config", tmp_path / "learn.yaml")
    assert done.exit_code == 2 and "--site requires an argument" in done.stderr
    done = sauce("learn", "--config", tmp_path / "none.yaml")
    assert done.exit_code == 2 and "cannot read" in done.stderr
