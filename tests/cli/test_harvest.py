# SPDX-License-Identifier: Apache-2.0
"""``sauce harvest`` end to end, and what it refuses before the engine starts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.sauce import sauce
from tests.places import ROOT
from vllm_sauce.activations.store import ActivationStore

TINY = ROOT / "examples/tiny"
SAUCE = Path(sys.executable).with_name("sauce")


@pytest.mark.engine
def test_pictures_become_shards(tmp_path):
    rows = [json.loads(line) for line in (TINY / "pictures/labels.jsonl").open()]
    table = tmp_path / "table.jsonl"
    lines = [
        json.dumps({"file": str(TINY / "pictures" / row["file"]), "words": words})
        for row in rows[:3]
        for words in ("What object is it?", "What colour?")
    ]
    table.write_text("\n".join([*lines, lines[0]]))
    command = [
        *(SAUCE, "harvest", "--model", TINY / "model", "--out", tmp_path / "h"),
        *("--site", "vision", "--site", "decoder.0", "--table", table),
        *("--image-column", "file", "--prompt-column", "words"),
        *("--engine-arg", "dtype=float32", "--engine-arg", "max-model-len=256"),
    ]
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    stores = [
        ActivationStore.open(tmp_path / "h", s, verify=True)
        for s in ("vision", "decoder.0")
    ]
    assert len(stores[0]) == 3 * 49
    assert len(stores[1].samples()) == 6
    for line in ("samples", "6", "left out as equal", "1", "147"):
        assert line in done.stdout


def run(*arguments):
    done = sauce("harvest", *arguments)
    return done.exit_code, " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "give one of --concepts, --pictures, --table, --texts, got none"),
        (("--texts", "a", "--pictures", "b"), "got --pictures and --texts"),
        (("--texts", "missing"), "cannot read texts from missing"),
        (("--table", "t.jsonl"), "say which columns"),
        (("--pictures", "b", "--split", "scoring"), "give --concepts"),
        (("--pictures", "missing"), "missing"),
    ],
)
def test_what_is_not_there_is_named(options, words, tmp_path):
    status, errors = run(
        "--model", TINY / "model", "--out", tmp_path / "h", "--site", "vision", *options
    )
    assert status == 2
    assert words in errors
    assert not (tmp_path / "h").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--engine-arg", "dtype"), "wanted KEY=VALUE"),
        (("--engine-arg", "a=1", "--engine-arg", "a=2"), "a is given twice"),
        (("--engine-arg", "enforce-eager=false"), "sets enforce_eager itself"),
        (("--site", "tower"), "a site is"),
        (
            ("--dtype", "int8"),
            'Invalid value "int8" for --dtype. Choose from: "float32"',
        ),
        (("--actors", "0"), "actors must be at least 1, got 0"),
        (("--actors", "2", "--cpus-per-actor", "0"), "a positive number of CPUs"),
    ],
)
def test_settings_that_make_no_sense_are_named(options, words, tmp_path):
    (tmp_path / "texts").write_text("is there a dog ?\n")
    status, errors = run(
        *("--model", TINY / "model", "--out", tmp_path / "h", "--site", "vision"),
        *("--texts", tmp_path / "texts", *options),
    )
    assert status == 2
    assert words in errors
