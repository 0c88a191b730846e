# SPDX-License-Identifier: Apache-2.0
"""Requests of the HTTP API as bytes, and the answers as ``Reply``."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import vllm_sauce
from tests.plugin.support import LOGPROBS, Reply
from tests.soak.inputs import embeds_item
from tests.soak.universe import QUESTIONS, Request, embeds, picture

CHAT = "/v1/chat/completions"
GENERATE = "/inference/v1/generate"
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Call:
    """One POST, and what must come of it."""

    path: str
    content: bytes
    expect: str = "refused"
    """``refused`` (a 4xx), ``unserved`` (no 200), ``answered`` (200, and equal to the
    cold engine's answer to ``request`` where there is one), ``sampled`` (the same of
    the first token's choices), ``a choice`` (yes or no), ``any`` (but what is
    answered is the cold engine's answer)."""

    request: Request | None = None
    max_tokens: int = 6
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    leave_after_s: float | None = None
    """Break off the connection then, whatever has come."""

    name: str = ""
    """What it tries, in a few words."""


def as_json(body: Any) -> bytes:
    """Encode a body; half an emoji is escaped, NaN written as Python does."""
    return json.dumps(body).encode()


@cache
def data_url(name: str) -> str:
    """Return a picture of the universe as a data URL."""
    buffer = io.BytesIO()
    picture(name).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def wish(request: Request) -> dict[str, Any]:
    """Return the body fields that make the server forget."""
    if not request.forget:
        return {}
    return dict(vllm_sauce.forget_body(*request.forget, strength=request.strength))


def content_of(request: Request) -> list[dict[str, Any]]:
    """Return the parts of a message."""
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(name)}}
        for name in request.pictures
    ]
    return [*parts, {"type": "text", "text": QUESTIONS[request.question]}]


def chat_body(request: Request, max_tokens: int = 6, **more: Any) -> dict[str, Any]:
    """Return the body of a chat that answers greedily, with log-probabilities."""
    return {
        "model": "tiny",
        "messages": [{"role": "user", "content": content_of(request)}],
        "temperature": 0,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "logprobs": True,
        "top_logprobs": LOGPROBS,
        "return_tokens_as_token_ids": True,
        **wish(request),
        **more,
    }


def chat(request: Request, max_tokens: int = 6, **more: Any) -> Call:
    """Return a good request."""
    body = chat_body(request, max_tokens, **more)
    return Call(CHAT, as_json(body), "answered", request, max_tokens)


def embeds_features(request: Request, by_name: bool) -> dict[str, Any]:
    """Return ``features`` but for the places, of pictures that are embeddings."""
    from vllm.entrypoints.scale_out.token_in_token_out.mm_serde import (
        encode_mm_kwargs_item,
    )

    data = [
        None if by_name else encode_mm_kwargs_item(embeds_item(embeds(name)))
        for name in request.pictures
    ]
    return {
        "mm_hashes": {"image": [f"soak-{name}" for name in request.pictures]},
        "kwargs_data": {"image": data},
    }


def generate_body(
    request: Request, tokens: list[int], image_token: int, *, by_name: bool = False
) -> dict[str, Any]:
    """Return a body of tokens, each picture's among them, and its embeddings.

    Shapes: tokens as ``/tokenize`` returns them, one ``image_token`` a picture.
    """
    ids: list[int] = []
    places: list[dict[str, int]] = []
    for token in tokens:
        if token == image_token:
            places.append({"offset": len(ids), "length": 49})
            ids += [token] * 49
        else:
            ids.append(token)
    params: dict[str, Any] = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    params["logprobs"] = LOGPROBS
    if request.forget:
        extra = vllm_sauce.forget(*request.forget, strength=request.strength)
        params["extra_args"] = extra
    features = embeds_features(request, by_name)
    features["mm_placeholders"] = {"image": places}
    return {"token_ids": ids, "sampling_params": params, "features": features}


def replies_of(body: dict[str, Any]) -> list[Reply]:
    """Read every choice of an answer that is whole."""
    return [reply_of(choice["logprobs"]["content"]) for choice in body["choices"]]


def reply_of_stream(text: str) -> Reply:
    """Read the chunks of an answer that came bit by bit."""
    steps: list[dict[str, Any]] = []
    for line in text.split("\n"):
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                steps += (choice.get("logprobs") or {}).get("content") or ()
    return reply_of(steps)


def reply_of(steps: list[dict[str, Any]]) -> Reply:
    """Read the log-probabilities of an answer, a step for each token."""
    return Reply(
        tuple(_token(step) for step in steps),
        tuple(
            tuple(sorted({_token(t): t["logprob"] for t in _likeliest(step)}.items()))
            for step in steps
        ),
        0,
    )


def _likeliest(step: dict[str, Any]) -> list[dict[str, Any]]:
    return [*step["top_logprobs"], step]


def _token(step: dict[str, Any]) -> int:
    if "token_id" in step:  # /inference/v1/generate
        return int(step["token_id"])
    return int(step["token"].removeprefix("token_id:"))
