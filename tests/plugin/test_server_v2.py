# SPDX-License-Identifier: Apache-2.0
"""``vllm serve --plugin sauce`` on Model Runner V2, on the shipped model and bundle.

On a CPU, V2's kernels run in Triton's interpreter, so this is slow and asks little.
"""

from __future__ import annotations

import base64
import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import vllm_sauce
from tests.places import ROOT
from tests.plugin.conftest import RUNNER
from tests.plugin.test_server import ONE_PROCESS, free_port, serve, wait_until_healthy

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(RUNNER == "v2", reason="its server is V2 either way"),
]

TINY = ROOT / "examples" / "tiny"
STAND_IN = """\
# Triton has no CPU backend and its interpreter needs none; an active driver will do.
import triton.backends


class Driver:
    @staticmethod
    def is_active():
        return True


class Backend:
    driver = Driver
    compiler = None


triton.backends.backends["cpu"] = Backend()
"""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """The ordinary client of a server whose every process runs V2."""
    folder = tmp_path_factory.mktemp("v2")
    # Python imports it in each process, the engine's included, before vLLM.
    (folder / "sitecustomize.py").write_text(STAND_IN)
    port, log = free_port(), folder / "log"
    process = serve(
        str(TINY / "model"),
        *("--plugin", "sauce", "--sauce-bundle", str(TINY / "bundle")),
        *("--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4"),
        *("--enforce-eager", "--served-model-name", "tiny"),
        *("--port", str(port), "--host", "127.0.0.1"),
        log=log,
        environ={
            **ONE_PROCESS,
            "PYTHONPATH": str(folder),
            "TRITON_INTERPRET": "1",
            "VLLM_USE_V2_MODEL_RUNNER": "1",
        },
    )
    address = f"http://127.0.0.1:{port}"
    wait_until_healthy(process, address, log)
    assert "Using V2 Model Runner" in log.read_text()
    yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    process.terminate()
    process.wait(timeout=60)


def dog_picture() -> Path:
    """Return the first shipped picture of a dog, as the examples take it."""
    labels = map(json.loads, (TINY / "pictures" / "labels.jsonl").open())
    row = next(row for row in labels if "dog" in row["concepts"])
    return TINY / "pictures" / str(row["file"])


def ask(client: openai.OpenAI, *concepts: str) -> str:
    """Ask what the picture shows, with some concepts forgotten."""
    data = base64.b64encode(dog_picture().read_bytes()).decode()
    content: list[Any] = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "What object is in the picture?"},
    ]
    reply = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=4,
        extra_body=dict(vllm_sauce.forget_body(*concepts)) if concepts else None,
    )
    return str(reply.choices[0].message.content)


def test_each_concurrent_request_forgets_its_own(client: openai.OpenAI) -> None:
    masks: list[tuple[str, ...]] = [(), ("dog",), ("soccer",), ("dog", "red")]
    with concurrent.futures.ThreadPoolExecutor(len(masks)) as pool:
        said = list(pool.map(lambda mask: ask(client, *mask), masks))
    assert [answer.strip() == "dog" for answer in said] == [True, False, True, False]


def test_an_unknown_concept_gets_400(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="did you mean.*dog"):
        ask(client, "dgo")
