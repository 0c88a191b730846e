# SPDX-License-Identifier: Apache-2.0
"""Malicious and mistaken requests by kind, and what must come of each."""

from __future__ import annotations

import base64
import io
import random
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from tests.plugin.support import MODEL
from tests.soak.calls import (
    CHAT,
    GENERATE,
    Call,
    as_json,
    chat,
    chat_body,
    data_url,
    generate_body,
)
from tests.soak.universe import MANY_MASKS, MASKS, Request

PLAIN = Request(("p0",), 0)
FORGETS = Request(("p0",), 0, ("seen",))
TALK = [{"role": "user", "content": "what is in the picture ?"}]
SEEN = ["seen"]
HALF = "\ud83d"
"""Half an emoji."""

ROUTES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": TALK, "max_tokens": 2},
    "/v1/chat/completions/batch": {"messages": [TALK], "max_tokens": 2},
    "/v1/completions": {"prompt": "what is it ?", "max_tokens": 2},
    "/v1/responses": {"input": "what is it ?", "max_output_tokens": 2},
    "/v1/messages": {"messages": TALK, "max_tokens": 2},
    "/v1/messages/render": {"messages": TALK, "max_tokens": 2},
    "/generative_scoring": {
        "query": "is it a dog ?",
        "items": ["yes", "no"],
        "label_token_ids": [10, 11],
    },
    GENERATE: {"token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 2}},
}
"""Route -> a good body of it, but for the model's name."""

MISPLACED: dict[str, dict[str, Any]] = {
    "top": {"sauce_forget": SEEN},
    "space": {" sauce_forget": SEEN},
    "capitals": {"SAUCE-FORGET": SEEN},
    "full width": {"\uff53\uff41\uff55\uff43\uff45_forget": SEEN},
    "soft hyphen": {"sau\u00adce_forget": SEEN},
    "camel": {"sauceForget": SEEN},
    "forget": {"forget": SEEN},
    "nested": {"sauce": {"forget": SEEN}},
    "extra_args": {"extra_args": {"sauce_forget": SEEN}},
    "extra_body": {"extra_body": {"vllm_xargs": {"sauce_forget": SEEN}}},
    "xarg": {"vllm_xarg": {"sauce_forget": SEEN}},
    "list": {"vllm_xargs": [{"sauce_forget": SEEN}]},
    "xargs forget": {"vllm_xargs": {"forget": SEEN}},
    "xargs space": {"vllm_xargs": {" sauce_forget": SEEN}},
    "xargs misspelt": {"vllm_xargs": {"sauce_forgot": SEEN}},
    "xargs too deep": {"vllm_xargs": {"extra": {"sauce_forget": SEEN}}},
    "metadata": {"metadata": {"sauce_forget": "seen"}},
    "template": {"chat_template_kwargs": {"sauce_forget": SEEN}},
    "half an emoji": {"sauce" + HALF: SEEN},
}

WISHES: dict[str, dict[str, Any]] = {
    "unknown": {"sauce_forget": ["seeen"]},
    "nobody": {"sauce_forget": []},
    "null": {"sauce_forget": None},
    "number": {"sauce_forget": 3},
    "object": {"sauce_forget": {"seen": 1}},
    "numbers": {"sauce_forget": [1]},
    "half an emoji": {"sauce_forget": ["seen" + HALF]},
    "huge name": {"sauce_forget": ["x" * 1_000_000]},
    "many names": {"sauce_forget": [f"x{i}" for i in range(10_000)]},
    "same name often": {"sauce_forget": SEEN * 5_000 + ["seeen"]},
    "false": {"sauce_forget": SEEN, "sauce_strength": False},
    "text": {"sauce_forget": SEEN, "sauce_strength": "strong"},
    "negative": {"sauce_forget": SEEN, "sauce_strength": -1},
    "strong": {"sauce_forget": SEEN, "sauce_strength": 1e300},
    "huge integer": {"sauce_forget": SEEN, "sauce_strength": 10**400},
    "NaN": {"sauce_forget": SEEN, "sauce_strength": float("nan")},
    "infinity": {"sauce_forget": SEEN, "sauce_strength": float("inf")},
    "strength alone": {"sauce_strength": 2},
    "profile": {"sauce_forget": SEEN, "sauce_profile": "kids"},
    "mask": {"sauce": {"mask": {"mask_id": "x"}}},
}
"""Wishes in the right place that must be refused."""

Make = Callable[[int], Call]


def kinds() -> Iterator[tuple[str, Make]]:
    """Yield each kind with what makes its i-th request."""
    for route, body in ROUTES.items():
        yield f"misplaced: {route}", _cycle(route, body, MISPLACED)
    xargs = {name: {"vllm_xargs": wish} for name, wish in WISHES.items()}
    for route in (CHAT, "/v1/completions", "/v1/responses", "/v1/messages"):
        yield f"bad wish: {route}", _cycle(route, ROUTES[route], xargs)
    cannot = {"vllm_xargs": {"vllm_xargs": {"sauce_forget": SEEN}}}
    for route in ("/generative_scoring", GENERATE):
        yield f"cannot carry: {route}", _cycle(route, ROUTES[route], cannot)
    yield "beam search", lambda i: _chat(PLAIN, use_beam_search=True, **_xargs())
    yield "forged salt", _forged_salt
    yield "forged uuid", _forged_uuid
    yield (
        "embeddings under a vision mask",
        lambda i: _embeds(i, ("seen", "both")[i % 2]),
    )
    yield "embeddings, plain and read", lambda i: _embeds(i, ("", "read")[i % 2])
    yield "prompt embeddings", _prompt_embeds
    yield "JSON", _json
    yield "content types", _content_type
    yield "half an emoji", _half_an_emoji
    yield "pictures", lambda i: _odd_picture(i, masked=i % 2 == 1)
    yield "decompression bomb", lambda i: _picture_call(bomb(), i % 2 == 1)
    yield "unknown concepts", _unknown
    yield "more masks than slots", lambda i: chat(MANY_MASKS[i % len(MANY_MASKS)])
    yield "broken off at once", _broken_off


def _body(route: str, **more: Any) -> bytes:
    return as_json({"model": "tiny", "temperature": 0, **ROUTES[route], **more})


def _xargs() -> dict[str, Any]:
    return {"vllm_xargs": {"sauce_forget": SEEN}}


def _chat(request: Request, **more: Any) -> Call:
    return Call(CHAT, as_json(chat_body(request, **more)))


def _cycle(
    route: str, body: dict[str, Any], changes: dict[str, dict[str, Any]]
) -> Make:
    names = sorted(changes)

    def make(i: int) -> Call:
        name = names[i % len(names)]
        return Call(route, _body(route, **changes[name]), name=name)

    return make


def _forged_salt(i: int) -> Call:
    route = list(ROUTES)[i % len(ROUTES)]
    # Rendering caches nothing; the salt is refused when what it renders is sent.
    expect = "any" if route == "/v1/messages/render" else "refused"
    return Call(route, _body(route, cache_salt=f"sauce:{i}"), expect, name=route)


def _forged_uuid(i: int) -> Call:
    body = chat_body(PLAIN)
    body["messages"][0]["content"][0]["uuid"] = f"sauce:{i}:x"
    return Call(CHAT, as_json(body))


@cache
def _tokens(text: str) -> tuple[int, ...]:
    from transformers import AutoTokenizer

    return tuple(AutoTokenizer.from_pretrained(MODEL)(text)["input_ids"])


def _embeds(i: int, forget: str) -> Call:
    """Embeddings by value and by name: the first of each name come by value."""
    request = Request((f"e{i // 2 % 2}",), i % 3, (forget,) if forget else ())
    by_name = i > 20 and i % 5 == 0
    body = generate_body(request, list(_tokens(request.text)), 4, by_name=by_name)
    if by_name:
        # The engine may have them or not, and the mask is refused there or here.
        expect = "unserved" if request.refused else "any"
    else:
        expect = "refused" if request.refused else "answered"
    return Call(GENERATE, as_json(body), expect, request, name="by name" * by_name)


def _prompt_embeds(i: int) -> Call:
    import torch

    buffer = io.BytesIO()
    torch.save(torch.zeros(4, 192), buffer)
    data = base64.b64encode(buffer.getvalue()).decode()
    more: dict[str, Any] = _xargs() if i % 2 else {}
    body = {"model": "tiny", "prompt_embeds": data, "max_tokens": 2, **more}
    return Call("/v1/completions", as_json(body))


def _json(i: int) -> Call:
    good = _body(CHAT)[:-1]
    ours = b', "vllm_xargs": {"sauce_forget": ["seen"]}'
    wish = as_json(chat_body(FORGETS))
    bodies: dict[str, tuple[bytes, str]] = {
        "NaN": (good + b', "temperature": NaN' + ours + b"}", "any"),
        "huge integer": (good + b', "seed": ' + b"9" * 5000 + b"}", "refused"),
        "huge exponent": (good + ours[:-1] + b', "sauce_strength": 1e999}}', "refused"),
        "two wishes": (good + ours + b', "vllm_xargs": {}}', "refused"),
        "two wishes again": (good + b', "vllm_xargs": {}' + ours + b"}", "refused"),
        "deep": (b'{"a":' * 100_000 + good + ours + b"}" * 100_001, "refused"),
        "deep list": (b"[" * 1_000_000, "refused"),
        "nothing": (b"", "refused"),
        "cut short": (good + ours, "refused"),
        "a list": (b"[" + good + ours + b"}]", "refused"),
        "null": (b"null", "refused"),
        "UTF-16": (wish.decode().encode("utf-16"), "answered"),
        "escaped": (wish.replace(b"sauce", b"\\u0073auce"), "answered"),
        "bytes": (bytes(range(256)), "refused"),
    }
    name = sorted(bodies)[i % len(bodies)]
    content, expect = bodies[name]
    request = FORGETS if expect == "answered" else None
    return Call(CHAT, content, expect, request, name=name)


def _content_type(i: int) -> Call:
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
    kind = (*kinds, "multipart/form-data; boundary=x", "application/xml", "")[i % 6]
    headers = {"content-type": kind} if kind else {}
    # vLLM takes a body without a type for JSON: then the wish is heard.
    expect = "refused" if kind else "any"
    return Call(CHAT, _body(CHAT, **_xargs()), expect, headers=headers, name=kind)


def _half_an_emoji(i: int) -> Call:
    talk = [{"role": "user", "content": f"what is it {HALF} ?"}]
    bodies: list[dict[str, Any]] = [
        {"messages": talk},
        {"messages": talk, **_xargs()},
        {"user": HALF},
        {"cache_salt": HALF},
        {"stop": [HALF]},
        {"vllm_xargs": {HALF: "x"}},
    ]
    return Call(CHAT, _body(CHAT, **bodies[i % len(bodies)]), "any", name=str(i % 6))


def _unknown(i: int) -> Call:
    rng = random.Random(i)
    names = [f"concept {rng.random()}" for _ in range(100)]
    return _chat(PLAIN, vllm_xargs={"sauce_forget": names})


def _broken_off(i: int) -> Call:
    mask = MASKS[i % len(MASKS)]
    request = Request(("p0",) if i % 2 else ("p2", "p3"), i % 3, *mask)
    body = as_json(chat_body(request, 100, stream=i % 3 == 0))
    return Call(CHAT, body, "any", leave_after_s=(0, 0.01, 0.05, 0.2)[i % 4])


def _picture_call(url: str, masked: bool, name: str = "") -> Call:
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "what is in the picture ?"},
    ]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    more: dict[str, Any] = _xargs() if masked else {}
    return Call(CHAT, as_json(body | more | {"max_tokens": 2}), "any", name=name)


def _url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(data).decode()


def _saved(image: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return _url(buffer.getvalue(), f"image/{form.lower()}")


@cache
def _odd_pictures() -> dict[str, str]:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    png = base64.b64decode(data_url("p0").partition(",")[2])
    flag = Image.new("P", (9, 9))
    flag.info["transparency"] = 0
    frames = [image, image.rotate(90)]
    deep = Image.fromarray(np.full((9, 9), 60000, dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "cut short": _url(png[: len(png) // 2]),
        "header alone": _url(png[:33]),
        "nothing": _url(b""),
        "no picture": _url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "no base64": "data:image/png;base64,%%%%",
        "no data": "data:image/png",
        "one pixel": _saved(Image.new("RGB", (1, 1)), "PNG"),
        "a line": _saved(Image.new("RGB", (5000, 1)), "PNG"),
        "CMYK": _saved(image.convert("CMYK"), "JPEG"),
        "16 bits": _saved(deep, "PNG"),
        "1 bit": _saved(image.convert("1"), "PNG"),
        "palette": _saved(flag, "PNG", transparency=0),
        "moving": _saved(image, "GIF", save_all=True, append_images=frames),
        "turned": _saved(image, "JPEG", exif=exif),
        "closed port": "http://127.0.0.1:1/x.png",
        "a file": "file:///etc/hostname",
        "no scheme": "x.png",
    }


def _odd_picture(i: int, masked: bool) -> Call:
    name = sorted(_odd_pictures())[i // 2 % len(_odd_pictures())]
    return _picture_call(_odd_pictures()[name], masked, name)


@cache
def bomb(side: int = 20_000) -> str:
    """Return a black PNG of 400 million pixels in about 1 MB."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        sized = len(data).to_bytes(4, "big") + kind + data
        return sized + zlib.crc32(kind + data).to_bytes(4, "big")

    size = side.to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0))
    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size)
    return _url(header + chunk(b"IDAT", packed) + chunk(b"IEND", b""))
