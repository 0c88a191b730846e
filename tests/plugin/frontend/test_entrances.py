# SPDX-License-Identifier: Apache-2.0
"""Lines of a batch file are checked as bodies over HTTP are."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vllm_sauce
from tests.plugin.misplaced import BODIES
from vllm_sauce.errors import InvalidRequestError, RequestError
from vllm_sauce.plugin.frontend.admission import Admission
from vllm_sauce.plugin.frontend.counters import counters
from vllm_sauce.plugin.frontend.entrances import check_line
from vllm_sauce.plugin.frontend.promises import promised

CHAT = "/v1/chat/completions"


def line(body: Any, url: str = CHAT) -> str:
    """Return a line of a batch file."""
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body})


@pytest.mark.parametrize("name", BODIES)
def test_batch_lines_are_checked_alike(name: str, admission: Admission) -> None:
    """What is refused over HTTP is refused in a file, for every URL."""
    for url in (CHAT, "/v1/embeddings", "/score", "/v1/audio/transcriptions", "/x"):
        with pytest.raises(RequestError):
            check_line(url, line(BODIES[name], url), admission)


def test_batch_lines_pass_as_over_http(admission: Admission) -> None:
    """A wish in its place, and what is the user's own; nothing beside the body."""
    good = {
        "messages": [],
        **vllm_sauce.forget_body("read"),
        "documents": [{"sauce": 1}],
    }
    check_line(CHAT, line(good), admission)
    outside = line(good)[:-1] + ', "sauce_forget": ["read"]}'
    with pytest.raises(InvalidRequestError, match="'sauce_forget'"):
        check_line(CHAT, outside, admission)
    with pytest.raises(InvalidRequestError, match="stands 2 times"):
        check_line(CHAT, line(good)[:-1] + ', "body": {}}', admission)
    with pytest.raises(InvalidRequestError, match="no JSON"):
        check_line(CHAT, line(good)[:-1], admission)


@pytest.mark.engine
def test_a_bad_line_fails_alone(
    bundle_dir: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own loop over a file: refused lines are reported, the others are asked."""
    from vllm.engine.arg_utils import EngineArgs

    from vllm_sauce.plugin import compat

    sauce = {"sauce": {"bundle": str(bundle_dir)}}
    EngineArgs(model=str(model_dir), additional_config=sauce).create_model_config()
    module = compat.seam_owner("http", "run_batch")
    promises: list[Any] = []

    async def handler(request: Any) -> Any:
        promise = promised.get()
        assert promise is not None
        promises.append(None if promise.mask is None else promise.mask.names())
        return module.create_error_response("answered")

    registry = {
        "completions": {
            "url_matcher": lambda url: url == CHAT,
            "handler_getter": lambda: handler,
            "wrapper_fn": None,
        }
    }
    refused = counters().refused.labels("UnknownConceptError")._value
    before = refused.get()

    async def build_endpoint_registry(**_: Any) -> Any:
        return registry

    monkeypatch.setattr(module, "build_endpoint_registry", build_endpoint_registry)
    talk = [{"role": "user", "content": "plain"}]
    lines = [
        line({"model": "tiny", "messages": talk}),
        line({"model": "tiny", "messages": talk, "sauce_forget": ["read"]}),
        line({"model": "tiny", "messages": talk, **vllm_sauce.forget_body("nobody")}),
        line({"model": "tiny", "messages": talk, **vllm_sauce.forget_body("read")}),
        line({"model": "tiny", "messages": talk}, url="/v1/completions"),
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    args = SimpleNamespace(
        input_file=str(tmp_path / "in.jsonl"),
        output_file=str(tmp_path / "out.jsonl"),
        output_tmp_dir=None,
    )
    vllm_config = SimpleNamespace(additional_config=sauce)
    engine = SimpleNamespace(input_processor=SimpleNamespace(vllm_config=vllm_config))
    asyncio.run(module.run_batch(engine, args))
    errors = [
        json.loads(text)["error"]
        for text in (tmp_path / "out.jsonl").read_text().splitlines()
    ]
    assert promises == [None, ("read",)]
    assert "answered" in str(errors[0])
    assert "'body.sauce_forget' stands where" in errors[1]
    assert "unknown concept 'nobody'" in errors[2]
    assert "answered" in str(errors[3])
    # What vLLM has no endpoint for it says itself.
    assert "/v1/completions" in str(errors[4])
    assert refused.get() == before + 1
