# SPDX-License-Identifier: Apache-2.0
"""One row of the input: what is asked, and what must be forgotten for it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from vllm_sauce.batch.settings import Defaults
from vllm_sauce.client import forget
from vllm_sauce.data.pictures import decode_picture
from vllm_sauce.errors import InvalidRequestError, PictureError
from vllm_sauce.files import check_unicode, distinct_keys, problems, writable

_EXACT = 2**53
"""Whole numbers below are exact as floats."""

_SAMPLING = {"max_tokens", "temperature", "top_p", "seed", "stop"}
"""Fields of a row that ``SamplingParams`` takes."""


def _whole(value: object) -> object:
    # A table of numbers with gaps holds floats: pandas makes 4.0 of 4.
    exact = isinstance(value, float) and value.is_integer() and abs(value) < _EXACT
    return int(value) if exact else value  # type: ignore[call-overload]


Names = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=1024)]


class Row(BaseModel):
    """A row as it is written; an unknown key is refused, it may be a misspelt mask."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    id: Annotated[str | int | None, BeforeValidator(_whole)] = None
    """Carried to the output; nothing checks that it is unique."""
    prompt: str | None = None
    """Text as the model takes it, placeholders of pictures included."""
    messages: list[dict[str, Any]] | None = Field(default=None, min_length=1)
    """A conversation in OpenAI's form; the model's chat template is applied."""
    image: Any = None
    """A path, a data URL, bytes, or a list of these."""
    forget: str | Names | None = None
    """Concepts, besides those the whole run forgets."""
    strength: float | None = None
    """Factor on the catalogue's edits for all this row forgets."""
    max_tokens: Annotated[int | None, BeforeValidator(_whole)] = Field(
        default=None, ge=1
    )
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: Annotated[int | None, BeforeValidator(_whole)] = Field(
        default=None, ge=0, lt=2**63
    )
    stop: str | Names | None = None
    meta: Any = None
    """Anything; carried to the output as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A row that can be asked."""

    number: int
    """Its place in the input, from 0."""

    id: str | None
    prompt: dict[str, Any] | None
    """What ``LLM.generate`` takes; None when there are messages."""

    messages: list[dict[str, Any]] | None
    """What ``LLM.chat`` takes; None when there is a prompt."""

    sampling: dict[str, Any]
    """Arguments of ``SamplingParams``."""

    extra_args: dict[str, object] | None
    """What it forgets, as a request says it."""

    meta: str | None
    """JSON."""


def parse_line(line: bytes) -> dict[str, Any]:
    """Read one line of JSON. Raises: InvalidRequestError"""
    try:
        # Files that were joined have a mark inside, too.
        data = json.loads(line.decode("utf-8-sig"), object_pairs_hook=distinct_keys)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the line is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidRequestError(
            f"a row is a JSON object, got {type(data).__name__}; "
            'write {"prompt": "..."} or {"messages": [...]}'
        )
    return data


def row_id(data: Mapping[str, Any]) -> str | None:
    """Return the id of a row that may be wrong otherwise, as text that can be kept."""
    found = _whole(data.get("id"))
    return writable(str(found)) if isinstance(found, str | int) else None


def read_row(
    number: int, data: Mapping[str, Any], defaults: Defaults, folder: Path
) -> Question:
    """Check a row and read its pictures; paths are relative to ``folder``.

    Raises: InvalidRequestError, InvalidStrengthError
    """
    try:
        check_unicode(data)
    except UnicodeError as error:
        raise InvalidRequestError(str(error)) from None
    row = _validated(data, defaults.forget_column)
    if (row.prompt is None) == (row.messages is None):
        raise InvalidRequestError("a row has either a prompt or messages, and one")
    pictures = [read_picture(item, folder) for item in _as_list(row.image)]
    prompt = messages = None
    if row.messages is not None:
        messages = _conversation(row.messages, pictures, folder)
    else:
        prompt = {"prompt": row.prompt}
        if pictures:
            shown = pictures if len(pictures) > 1 else pictures[0]
            prompt["multi_modal_data"] = {"image": shown}  # type: ignore[assignment]
    return Question(
        number=number,
        id=row_id(data),
        prompt=prompt,
        messages=messages,
        sampling=_sampling(row, defaults),
        extra_args=_extra_args(row, defaults),
        meta=None if row.meta is None else _as_json(row.meta),
    )


def _validated(data: Mapping[str, Any], forget_column: str) -> Row:
    named = dict(data)
    if forget_column != "forget":
        if "forget" in named:
            raise InvalidRequestError(
                f"the masks are in {forget_column!r}, but the row has 'forget' too"
            )
        if forget_column in named:
            named["forget"] = named.pop(forget_column)
    try:
        return Row.model_validate(named)
    except ValidationError as error:
        raise InvalidRequestError(problems(error, 3)) from None


def _sampling(row: Row, defaults: Defaults) -> dict[str, Any]:
    own = row.model_dump(include=_SAMPLING, exclude_none=True)
    run = {"max_tokens": defaults.max_tokens, "temperature": defaults.temperature}
    return run | own


def _extra_args(row: Row, defaults: Defaults) -> dict[str, object] | None:
    own = _as_list(row.forget)
    names = list(dict.fromkeys((*defaults.forget, *own)))
    if not names:
        if row.strength is not None:
            raise InvalidRequestError(
                "the row has a strength but nothing to forget; name concepts"
            )
        return None
    strength = defaults.strength if row.strength is None else row.strength
    if defaults.forget and strength < defaults.strength:
        raise InvalidRequestError(
            f"the row's strength {strength:g} is below the run's "
            f"{defaults.strength:g}, which holds for every row; leave it out"
        )
    return forget(*names, strength=strength)


def _conversation(
    messages: list[dict[str, Any]], pictures: list[Any], folder: Path
) -> list[dict[str, Any]]:
    """Return the messages with every picture in vLLM's form for ready ones."""
    turns = [_turn(message, folder) for message in messages]
    if not pictures:
        return turns
    for turn in turns:
        if turn["role"] == "user":
            text = turn["content"]
            parts = [{"type": "text", "text": text}] if isinstance(text, str) else text
            turn["content"] = [*map(_picture_part, pictures), *(parts or [])]
            return turns
    raise InvalidRequestError("the row has an image but no message of the user")


def _turn(message: dict[str, Any], folder: Path) -> dict[str, Any]:
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise InvalidRequestError("every message has a role: user, assistant, system")
    if isinstance(content, list):
        content = [_part(part, folder) for part in content]
    elif content is not None and not isinstance(content, str):
        raise InvalidRequestError(
            f"a message's content is text or a list, got {type(content).__name__}"
        )
    return {**message, "content": content}


def _part(part: Any, folder: Path) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "image":
        return _picture_part(read_picture(part.get("image"), folder))
    if kind == "image_url":
        link = part.get("image_url")
        url = link.get("url") if isinstance(link, dict) else link
        return _picture_part(read_picture(url, folder))
    raise InvalidRequestError(
        f"a message's part is of type text, image or image_url, got {kind!r}"
    )


def _picture_part(picture: Any) -> dict[str, Any]:
    return {"type": "image_pil", "image_pil": picture}


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"meta must be JSON: {error}") from None


def read_picture(source: Any, folder: Path) -> Any:
    """Return a picture in RGB; a path is relative to ``folder``, nothing is fetched.

    A mapping with bytes or path is what Hugging Face's data sets hold.

    Raises: InvalidRequestError
    """
    try:
        return decode_picture(_bytes_of(source, folder))
    except PictureError as error:
        raise InvalidRequestError(f"the image cannot be read: {error}") from None


def _bytes_of(source: Any, folder: Path) -> bytes:
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str) or not source:
        raise InvalidRequestError(
            "an image is a path, a data URL or bytes, got "
            f"{'nothing' if not source else type(source).__name__}"
        )
    if source.startswith("data:"):
        return _decoded(source)
    if "://" in source[:16]:
        raise InvalidRequestError(
            f"pictures are not fetched, got {source[:64]!r}; give a path, a data URL "
            "or bytes"
        )
    try:
        return (folder / source).read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidRequestError(
            f"the image cannot be read: {str(error)[:200]}"
        ) from None


def _decoded(url: str) -> bytes:
    head, comma, text = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InvalidRequestError(
            "a data URL is data:image/...;base64,... , got another form"
        )
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidRequestError(f"the image is not base64: {error}") from None
