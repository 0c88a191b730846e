# SPDX-License-Identifier: Apache-2.0
"""``vllm serve --plugin sauce`` on a Llama 3.2 Vision, which each process brings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

import vllm_sauce
from tests.plugin.conftest import RUNNER
from tests.plugin.models import crossing
from tests.plugin.models.compared import (
    Asked,
    Reference,
    largest,
    picture,
    write_bundle,
    write_template,
)
from tests.plugin.models.vision_models import write_vision_model
from tests.plugin.test_server import free_port, serve, wait_until_healthy
from vllm_sauce.measuring.endpoint import picture_part

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(RUNNER == "v2", reason="its server is V1 either way"),
]

TEXT = "is there a dog ?"


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory, model_dir: Path
) -> tuple[Path, Path]:
    """A random model, and a bundle for it."""
    folder = tmp_path_factory.mktemp("mllama")
    model = write_vision_model(folder / "model", "mllama", model_dir)
    write_template(model, crossing.WORD)
    return model, write_bundle(folder / "bundle", model, "decoder.2")


@pytest.fixture(scope="module")
def client(
    files: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    """A client of a server that is told no more than users tell."""
    port, log = free_port(), tmp_path_factory.mktemp("serve") / "log"
    process = serve(
        str(files[0]),
        *("--plugin", "sauce", "--sauce-bundle", str(files[1])),
        *("--max-model-len", "256", "--dtype", "float32"),
        *("--served-model-name", "mllama"),
        *("--port", str(port), "--host", "127.0.0.1"),
        log=log,
    )
    address = f"http://127.0.0.1:{port}"
    wait_until_healthy(process, address, log)
    yield openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    process.terminate()
    process.wait(timeout=60)


def ask(client: openai.OpenAI, shown: Any, *forget: str) -> dict[str, float]:
    """Return the likeliest first tokens of an answer, with their log-probabilities."""
    content: list[Any] = [{"type": "text", "text": TEXT}]
    for one in shown:
        content.insert(0, picture_part(one))
    reply = client.chat.completions.create(
        model="mllama",
        messages=[{"role": "user", "content": content}],
        temperature=0,
        max_tokens=1,
        logprobs=True,
        top_logprobs=8,
        extra_body={
            "return_tokens_as_token_ids": True,
            **(vllm_sauce.forget_body(*forget) if forget else {}),
        },
    )
    found = reply.choices[0].logprobs
    assert found is not None and found.content is not None
    return {one.token: one.logprob for one in found.content[0].top_logprobs}


def test_answers_and_edits_are_those_of_transformers(
    client: openai.OpenAI, files: tuple[Path, Path]
) -> None:
    reference = Reference(*files)
    tall = picture(1, 56, 112)
    for shown, forget in (
        ([], ()),
        ([], ("read",)),
        ([tall], ()),
        ([tall], ("seen",)),
        ([tall], ("both",)),
    ):
        prompt = f"{crossing.WORD} {TEXT}" if shown else TEXT
        wanted = reference.logprobs(Asked(prompt, tall if shown else None, forget))
        said = ask(client, shown, *forget)
        assert len(said) == 8
        got = {int(name.removeprefix("token_id:")): x for name, x in said.items()}
        assert largest(got, wanted) < 1e-3
        if forget:
            plain = reference.logprobs(Asked(prompt, tall if shown else None))
            assert largest(got, plain) > 0.05


def test_bad_requests_fail_alone(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="At most 1 image"):
        ask(client, [picture(0, 56, 56), picture(1, 56, 56)])
    with pytest.raises(openai.BadRequestError, match="unicorn"):
        ask(client, [picture(0, 56, 56)], "unicorn")
    assert ask(client, [picture(0, 56, 56)], "seen")
