# SPDX-License-Identifier: Apache-2.0
"""``vllm`` commands that end: those that refuse to start, benchmarks, run-batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vllm_sauce
from tests.plugin.conftest import RUNNER
from tests.plugin.loaded_vllm import LoadedVLLM, loaded_vllm
from tests.plugin.test_server import ONE_PROCESS, inherited

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        RUNNER == "v2", reason="V2 on CPU needs a stand-in inside the engine's process"
    ),
]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedVLLM]:
    """What runs a command in a copy of a process that has loaded vLLM."""
    folder = tmp_path_factory.mktemp("commands")
    with loaded_vllm(folder, inherited() | ONE_PROCESS) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--plugin", "sauce", "--sauce-bundle", "no/such/place"], "no/such/place"),
        (["--plugin", "soss"], "unknown plugin 'soss'"),
        (["--sauce-forget", "seen"], "--plugin sauce"),
        (["--sauce-bench-forget", "seen"], "unrecognized arguments"),
    ],
)
def test_server_does_not_start(
    commands: LoadedVLLM, model_dir: Path, args: list[str], says: str
) -> None:
    """A wrong command line ends the start with its reason."""
    status, said = commands.run("serve", str(model_dir), "--dtype", "float32", *args)
    assert status != 0
    assert says in said


def throughput(
    commands: LoadedVLLM, model_dir: Path, bundle_dir: Path, *args: str
) -> tuple[int, str]:
    """Run ``vllm bench throughput`` on six texts."""
    return commands.run(
        *("bench", "throughput", "--model", str(model_dir)),
        *("--plugin", "sauce", "--sauce-bundle", str(bundle_dir)),
        *("--dtype", "float32", "--enforce-eager", "--max-model-len", "256"),
        *("--dataset-name", "random", "--random-input-len", "24"),
        *("--random-output-len", "4", "--num-prompts", "6", *args),
    )


@pytest.mark.feature("vllm bench throughput")
@pytest.mark.parametrize("engine", ["", "--async-engine"])
def test_bench_throughput_runs(
    commands: LoadedVLLM, model_dir: Path, bundle_dir: Path, engine: str
) -> None:
    """It takes the same flags, and each request gets its mask."""
    status, said = throughput(
        *(commands, model_dir, bundle_dir),
        *("--sauce-forget", "seen", "--sauce-bench-forget", "random:2"),
        *filter(None, [engine]),
    )
    assert status == 0, said[-3000:]
    assert "mandatory: seen" in said
    assert "Throughput:" in said
    assert "6 requests, warm-up among them, were answered under 2 different" in said


def test_bench_throughput_of_an_edit_that_is_none_has_no_figure(
    commands: LoadedVLLM, model_dir: Path, bundle_dir: Path
) -> None:
    """The requests are texts, and the concept is of pictures."""
    status, said = throughput(
        *(commands, model_dir, bundle_dir, "--sauce-bench-forget", "seen")
    )
    assert status == 1
    assert "error: --sauce-bench-forget: seen would be forgotten in pictures" in said
    assert "Throughput:" not in said


@pytest.mark.parametrize("bench", ["latency", "serve", "throughput"])
def test_bench_commands_know_the_flags(commands: LoadedVLLM, bench: str) -> None:
    """They have them too, in one group."""
    status, said = commands.run("bench", bench, "--help=sauce")
    assert status == 0
    assert "--sauce-bundle" in said
    assert "--sauce-bench-forget" in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--sauce-bench-forget", "dog"], "add --plugin sauce"),
        (["--plugin", "sauce", "--sauce-bench-forget", "random:0"], "got '0'"),
        (["--plugin", "sauce", "--sauce-bench-forget", "raed"], "mean 'read'"),
    ],
)
def test_a_wrong_benchmark_does_not_start(
    commands: LoadedVLLM, model_dir: Path, bundle_dir: Path, args: list[str], says: str
) -> None:
    bundle = ("--sauce-bundle", str(bundle_dir)) if "--plugin" in args else ()
    status, said = commands.run(
        "bench", "throughput", "--model", str(model_dir), *bundle, *args
    )
    assert status != 0
    assert "error:" in said and says in said
    assert "Traceback" not in said


@pytest.mark.feature("run-batch")
def test_run_batch_forgets_and_refuses(
    commands: LoadedVLLM, model_dir: Path, bundle_dir: Path, tmp_path: Path
) -> None:
    """``vllm run-batch``: a wish is heard, and a line that would not be fails alone."""
    bodies: list[dict[str, Any]] = [
        {},
        dict(vllm_sauce.forget_body("both", strength=10.0)),
        {"sauce_forget": ["seen"]},
        {"vllm_xargs": {"sauce_forget": []}},
        vllm_sauce.forget_body("nobody"),
    ]
    talk = [{"role": "user", "content": "what is in the picture ?"}]
    ask = {"model": "tiny", "temperature": 0, "messages": talk, "max_tokens": 12}
    ask |= {"ignore_eos": True}
    request = {"method": "POST", "url": "/v1/chat/completions"}
    lines = [
        json.dumps({"custom_id": str(index), **request, "body": ask | body})
        for index, body in enumerate(bodies)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    files = ["-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
    status, said = commands.run(
        *("run-batch", *files, "--model", str(model_dir)),
        *("--served-model-name", "tiny", "--plugin", "sauce"),
        *("--sauce-bundle", str(bundle_dir), "--dtype", "float32"),
        *("--max-model-len", "512", "--enforce-eager"),
    )
    assert status == 0, said[-3000:]
    output = (tmp_path / "out.jsonl").read_text().splitlines()
    plain, masked, *refused = map(json.loads, output)
    for reply in (plain, masked):
        assert reply["error"] is None, reply
    texts = [
        reply["response"]["body"]["choices"][0]["message"]["content"]
        for reply in (plain, masked)
    ]
    assert texts[0] != texts[1]
    for reply, says in zip(refused, ("vllm_xargs", "empty", "unknown"), strict=True):
        assert reply["response"]["status_code"] == 400
        assert says in reply["error"]
