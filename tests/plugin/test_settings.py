# SPDX-License-Identifier: Apache-2.0
"""What each process of a server finds in its configuration."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sauce.bundle import Bundle
from vllm_sauce.plugin import settings

TINY = (Path(__file__).parents[2] / "examples/tiny").resolve()

# As vLLM's API server processes do it: plugins load while engine arguments are made.
CHILD = """
import json, pickle, sys
for args in pickle.load(sys.stdin.buffer):
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = engine_args.create_engine_config()
    print("CONFIG", json.dumps(config.additional_config))
"""


def parse(*argv: str) -> Any:
    """Parse a server's command line with vLLM's own parser."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return parser.parse_args(
        ["--model", str(TINY / "model"), "--dtype", "float32", *argv]
    )


def test_a_process_that_is_handed_the_arguments_has_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By flags, JSON and variables, each without the other two in the child."""
    monkeypatch.chdir(TINY)
    routes = [
        parse("--plugin", "sauce", "--sauce-bundle", "bundle", "--sauce-forget", "dog"),
        parse(
            "--additional-config", '{"sauce": {"bundle": "bundle", "forget": ["dog"]}}'
        ),
    ]
    monkeypatch.setenv("VLLM_SAUCE_BUNDLE", "bundle")
    monkeypatch.setenv("VLLM_SAUCE_FORGET", "dog")
    routes.append(parse())
    monkeypatch.delenv("VLLM_SAUCE_BUNDLE")
    monkeypatch.delenv("VLLM_SAUCE_FORGET")
    monkeypatch.chdir("/")
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=pickle.dumps(routes),
        capture_output=True,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found = [
        json.loads(line.removeprefix("CONFIG "))["sauce"]
        for line in done.stdout.decode().splitlines()
        if line.startswith("CONFIG ")
    ]
    assert len(found) == 3
    for section in found:
        assert section == found[0]
        assert section["bundle"] == str(TINY / "bundle")
        assert section["forget"] == ["dog"]
        assert section["digest"] == Bundle.load(TINY / "bundle", weights=False).digest
        assert section["num_slots"] > 0 and section["max_num_tokens"] > 0


def vllm_config(**scheduler: int) -> Any:
    """Return a stand-in for ``VllmConfig`` with sauce."""
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 512, **scheduler}
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(**sizes),
        compilation_config=SimpleNamespace(cudagraph_capture_sizes=[1, 64]),
        additional_config={"sauce": {"bundle": "b"}},
    )


def test_the_tables_sizes_key_the_compiled_model() -> None:
    """They are burnt into its graph; vLLM's own key has not all of them."""
    config = vllm_config()
    sizes = settings.table_sizes(config)
    assert sizes == {"num_slots": 8, "max_num_tokens": 512}
    assert settings.table_sizes(vllm_config(max_num_seqs=16)) != sizes
    assert settings.table_sizes(vllm_config(max_num_batched_tokens=48)) == {
        "num_slots": 8,
        "max_num_tokens": 64,
    }
    config.additional_config["sauce"].update(sizes)
    read = settings.from_vllm_config(config)
    assert read is not None and read.bundle == "b"
