# SPDX-License-Identifier: Apache-2.0
"""`sauce batch` on sauce-tiny: one process, and two actors one of which is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image
from vllm.v1.engine.exceptions import EngineDeadError

import vllm_sauce
from tests.batch.processes import KillsOneActor
from tests.cli.sauce import sauce
from tests.engines import starts_engine
from tests.places import TINY
from vllm_sauce.batch.engine import Engine
from vllm_sauce.batch.rows import Question
from vllm_sauce.bundle import Bundle
from vllm_sauce.client import parse_request
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import ActorDiedError
from vllm_sauce.unlearning.mask import resolve_mask

ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 8,
    "enforce_eager": True,
    "seed": 0,
}
QUESTIONS = (
    "What object is in the picture?",
    "What color is the background?",
    "Is there a dog in the picture?",
)
FORGET: list[list[str]] = [[], ["dog"], ["red", "wood"], ["cat"]]
ROWS = 96
TOO_LONG = 30
"""A row whose prompt does not fit, with the picture of the row after it."""


def rows() -> list[dict[str, Any]]:
    """Return questions as prompts and as messages, with four masks in turn."""
    pictures = sorted((TINY / "pictures").glob("*.png"))
    found: list[dict[str, Any]] = []
    for i in range(ROWS):
        question = QUESTIONS[i % len(QUESTIONS)]
        row: dict[str, Any] = {"id": f"r{i}", "image": str(pictures[i // 2])}
        if i % 5 == 0:
            row["messages"] = [{"role": "user", "content": question}]
        else:
            row["prompt"] = f"USER: <image>\n{question} ASSISTANT:"
        if names := FORGET[i % len(FORGET)]:
            row["forget"] = names
        found.append(row)
    found[TOO_LONG].pop("messages", None)
    found[TOO_LONG]["prompt"] = "USER: <image>\n" + "is there a dog ? " * 300
    found[7]["forget"] = ["dgo"]
    return found


@pytest.fixture(scope="module")
@starts_engine
def plain() -> list[str]:
    """Return what a plain ``LLM.generate`` answers to the rows that are right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM, SamplingParams

        llm = LLM(
            model=str(TINY / "model"),
            kv_cache_memory_bytes=64 * 1024 * 1024,
            additional_config={"sauce": {"bundle": str(TINY / "latents")}},
            **ENGINE,
        )
        prompts, params = [], []
        for i, row in enumerate(rows()):
            question = QUESTIONS[i % len(QUESTIONS)]
            names = row.get("forget") if i != 7 else None
            image = Image.open(row["image"]).convert("RGB")
            prompts.append(
                {
                    "prompt": f"USER: <image>\n{question} ASSISTANT:",
                    "multi_modal_data": {"image": image},
                }
            )
            params.append(
                SamplingParams(
                    temperature=0,
                    max_tokens=8,
                    extra_args=dict(vllm_sauce.forget(*names)) if names else None,
                )
            )
        outputs = llm.generate(prompts, params, use_tqdm=False)
    return [output.outputs[0].text for output in outputs]


def sauce_batch(source: Path, out: Path, *options: str) -> Any:
    """Run the command in this process, with sauce-tiny and its bundle."""
    return sauce(*arguments(source, out), *options)


def arguments(source: Path, out: Path) -> list[str]:
    """Return the command's arguments."""
    given = ["batch", str(source), str(out), "--model", str(TINY / "model")]
    for key, value in ENGINE.items():
        given += ["--engine-arg", f"{key}={json.dumps(value)}"]
    return [*given, "--bundle", str(TINY / "latents"), "--max-tokens", "8"]


def write(path: Path, found: list[dict[str, Any]]) -> Path:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


@pytest.mark.slow
def test_a_killed_actor_costs_no_row_and_doubles_none(
    tmp_path: Path, plain: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers are those of a plain loop, row by row, each with its own mask."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # That an engine's own processes end with whom they work for: plugin/test_server.py.
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    out = tmp_path / "out.parquet"
    parts = tmp_path / "out.parquet.parts"
    killer = KillsOneActor(lambda: list(parts.glob("part-*")))
    done = sauce_batch(
        write(tmp_path / "in.jsonl", rows()),
        out,
        "--actors=2",
        "--gpus-per-actor=0",
        "--cpus-per-actor=1",
        "--rows-per-part=4",
    )
    assert killer.killed is not None
    assert done.exit_code == 1, done.output  # two rows are wrong
    found = pq.read_table(out).to_pylist()
    right = [i for i in range(ROWS) if i not in (7, TOO_LONG)]
    assert [row["row"] for row in found] == right
    assert [row["id"] for row in found] == [f"r{i}" for i in right]
    assert [row["text"] for row in found] == [plain[i] for i in right]
    check_masks(found)
    failures = tmp_path / "out.parquet.failures.jsonl"
    wrong = [json.loads(line) for line in failures.read_text().splitlines()]
    assert [row["id"] for row in wrong] == ["r7", f"r{TOO_LONG}"]
    assert wrong[0]["error"] == "UnknownConceptError"
    assert "did you mean 'dog'" in wrong[0]["message"]
    assert not parts.exists()


@pytest.mark.slow
def test_one_process_answers_as_a_plain_loop_does(
    tmp_path: Path, plain: list[str]
) -> None:
    """In a process of its own: in this one another engine has run."""
    source, out = write(tmp_path / "in.jsonl", rows()[:7]), tmp_path / "out.parquet"
    command = [sys.executable, "-m", "vllm_sauce.cli", *arguments(source, out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = pq.read_table(out).to_pylist()
    assert [row["text"] for row in found] == plain[:7]
    assert "7 of 7 rows answered" in done.stdout


class Broken:
    """A vLLM whose engine dies at its second step."""

    def __init__(self) -> None:
        self.llm_engine, self.steps = self, 0
        self.vllm_config = SimpleNamespace(
            additional_config=None, scheduler_config=SimpleNamespace(max_num_seqs=4)
        )

    def enqueue(self, prompts: Any, params: Any, use_tqdm: bool) -> list[str]:
        return ["0-abc"]

    def step(self) -> list[Any]:
        self.steps += 1
        if self.steps > 1:
            raise RuntimeError("out of memory")
        return []


class Refusing(Broken):
    """A vLLM whose engine is found dead when a row is given to it."""

    def enqueue(self, prompts: Any, params: Any, use_tqdm: bool) -> list[str]:
        raise EngineDeadError("out of memory")


class Odd(Broken):
    """A vLLM whose output is not what it was."""

    def step(self) -> list[Any]:
        return [SimpleNamespace(finished=True, request_id="0", outputs="out of memory")]


@pytest.mark.parametrize("broken", [Broken, Refusing, Odd])
@pytest.mark.timeout(120)
def test_a_dead_engine_leaves_nobody_waiting(broken: type[Broken]) -> None:
    engine = Engine(broken())
    question = Question(
        number=0,
        id=None,
        prompt={"prompt": "a"},
        messages=None,
        sampling={},
        extra_args=None,
        meta=None,
    )
    for _ in range(2):
        with pytest.raises(ActorDiedError, match="the engine died: .*Error"):
            engine.answer([question])


def check_masks(found: list[dict[str, Any]]) -> None:
    """Each row tells the mask it asked for, as the bundle resolves it."""
    bundle = Bundle.load(TINY / "latents", weights=False)
    config = SauceConfig(bundle="unused")
    changed = set()
    for row in found:
        names = FORGET[row["row"] % len(FORGET)]
        request = parse_request(vllm_sauce.forget(*names)) if names else None
        mask = resolve_mask(request, bundle.catalogue, bundle.digest, config)
        assert row["mask_id"] == (mask.mask_id if mask else None)
        told = [(each["concept"], each["strength"]) for each in row["forget"]]
        assert told == [(name, 1.0) for name in sorted(names)]
        assert row["bundle"] == bundle.digest
        changed.add(row["mask_id"])
    assert len(changed) == len(FORGET)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--forget", "dgo"], "did you mean 'dog'"),
        (["--strength", "11"], "strength must be"),
        (["--bundle", "nowhere"], "no bundle at"),
        (["--model", "no/model/here"], "neither a folder nor"),
        (["--engine-arg", "additional_config={}"], "no engine argument"),
        (["--engine-arg", "seed"], "wanted KEY=VALUE"),
        (["--max-tokens", "0"], "max_tokens"),
        (["--temperature", "nan"], "temperature"),
        (["--forget-column", "prompt"], "meaning of its own"),
        (["--actors", "0"], "actors"),
    ],
)
def test_what_cannot_work_stops_before_anything_starts(
    tmp_path: Path,
    options: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = write(tmp_path / "in.jsonl", [{"prompt": "hi"}])
    done = sauce_batch(source, tmp_path / "out.parquet", *options)
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())
    assert sorted(os.listdir(tmp_path)) == ["in.jsonl"]


def test_forgetting_without_a_bundle_stops(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"prompt": "hi"}])
    model = ("--model", TINY / "model")
    done = sauce("batch", source, tmp_path / "o.parquet", "--forget", "dog", *model)
    assert done.exit_code == 2
    assert "no bundle to forget with" in done.output
