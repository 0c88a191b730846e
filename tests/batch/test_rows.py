# SPDX-License-Identifier: Apache-2.0
"""Rows as they are written, and what is refused."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vllm_sauce
from tests.places import TINY_PICTURES
from vllm_sauce.batch.rows import Question, parse_line, read_row
from vllm_sauce.batch.settings import Defaults
from vllm_sauce.errors import RequestError

PICTURES = TINY_PICTURES


def read(row: dict[str, Any], defaults: Defaults | None = None) -> Question:
    """Read a row whose pictures lie among sauce-tiny's."""
    return read_row(7, row, defaults or Defaults(), PICTURES)


def test_a_prompt_with_a_picture() -> None:
    found = read({"id": 3, "prompt": "<image> what?", "image": "000.png"})
    assert (found.number, found.id, found.messages) == (7, "3", None)
    assert found.prompt is not None
    assert found.prompt["prompt"] == "<image> what?"
    assert found.prompt["multi_modal_data"]["image"].size == (56, 56)
    assert found.sampling == {"max_tokens": 64, "temperature": 0.0}
    assert found.extra_args is None


def test_every_form_of_a_picture_is_the_same_picture() -> None:
    raw = (PICTURES / "001.png").read_bytes()
    url = "data:image/png;base64," + base64.b64encode(raw).decode()
    forms: list[Any] = ["001.png", str(PICTURES / "001.png"), url, raw]
    forms += [{"bytes": raw, "path": None}, {"bytes": None, "path": "001.png"}]
    shown = []
    for form in forms:
        prompt = read({"prompt": "?", "image": form}).prompt
        assert prompt is not None
        shown.append(prompt["multi_modal_data"]["image"].tobytes())
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "image", "image": "001.png"},
                {"type": "text", "text": "what?"},
            ],
        }
    ]
    (turn,) = read({"messages": messages}).messages or []
    shown += [part["image_pil"].tobytes() for part in turn["content"][:2]]
    assert turn["content"][2] == {"type": "text", "text": "what?"}
    assert len(set(shown)) == 1


def test_a_picture_beside_messages_goes_to_the_users_first() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what?"},
    ]
    turns = read({"messages": messages, "image": ["000.png", "001.png"]}).messages
    assert turns is not None
    kinds = [part["type"] for part in turns[1]["content"]]
    assert kinds == ["image_pil", "image_pil", "text"]
    assert turns[0]["content"] == "be brief"


def test_a_rows_mask_adds_to_the_runs() -> None:
    run = Defaults(forget=("dog",), strength=1.5)
    assert read({"prompt": "?"}, run).extra_args == vllm_sauce.forget(
        "dog", strength=1.5
    )
    own = {"prompt": "?", "forget": ["red", "dog"], "strength": 2.0}
    assert read(own, run).extra_args == vllm_sauce.forget("dog", "red", strength=2.0)
    assert read({"prompt": "?", "forget": []}, run).extra_args == vllm_sauce.forget(
        "dog", strength=1.5
    )
    assert read({"prompt": "?", "forget": "red"}).extra_args == vllm_sauce.forget("red")


def test_the_masks_column_may_have_another_name() -> None:
    named = Defaults(forget_column="mask")
    assert read({"prompt": "?", "mask": "dog"}, named).extra_args == vllm_sauce.forget(
        "dog"
    )
    with pytest.raises(RequestError, match="'forget' too"):
        read({"prompt": "?", "forget": "dog"}, named)


def test_sampling_of_a_row_wins() -> None:
    row = {"prompt": "?", "max_tokens": 3, "temperature": 0.5, "seed": 1, "stop": "x"}
    assert read(row).sampling == {
        "max_tokens": 3,
        "temperature": 0.5,
        "seed": 1,
        "stop": "x",
    }


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({}, "either a prompt or messages"),
        ({"prompt": "?", "messages": [{"role": "user", "content": "?"}]}, "either"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "?", "forgit": "dog"}, "forgit"),
        ({"prompt": "?", "forget": 5}, "forget"),
        ({"prompt": "?", "forget": ["dog", None]}, "forget"),
        ({"prompt": "?", "forget": [""]}, "forget"),
        ({"prompt": "?", "forget": "dog", "strength": 99.0}, "strength"),
        ({"prompt": "?", "forget": "dog", "strength": True}, "strength"),
        ({"prompt": "?", "strength": 1.0}, "nothing to forget"),
        ({"prompt": "?", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "?", "temperature": float("nan")}, "temperature"),
        ({"prompt": "?", "temperature": -1.0}, "temperature"),
        ({"prompt": "?", "image": "nowhere.png"}, "cannot be read"),
        ({"prompt": "?", "image": "labels.jsonl"}, "cannot be read"),
        ({"prompt": "?", "image": "a\0b"}, "cannot be read"),
        ({"prompt": "?", "image": "https://x/y.png"}, "not fetched"),
        ({"prompt": "?", "image": "file:///etc/passwd"}, "not fetched"),
        ({"prompt": "?", "image": "data:image/png;base64,%%"}, "not base64"),
        ({"prompt": "?", "image": "data:image/png,abc"}, "data URL"),
        ({"prompt": "?", "image": b"not a picture"}, "cannot be read"),
        ({"prompt": "?", "image": 5}, "a path, a data URL or bytes"),
        ({"prompt": "?", "image": {"bytes": None}}, "a path, a data URL or bytes"),
        ({"prompt": "?", "meta": {1, 2}}, "JSON"),
        ({"messages": []}, "messages"),
        ({"messages": ["hi"]}, "messages"),
        ({"messages": [{"content": "hi"}]}, "role"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url"}]}]},
            "text, image or image_url",
        ),
        (
            {"messages": [{"role": "system", "content": "x"}], "image": "000.png"},
            "no message of the user",
        ),
    ],
)
def test_a_wrong_row_is_refused(row: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError, match=told):
        read(row)


def test_a_row_cannot_weaken_what_the_run_forgets() -> None:
    with pytest.raises(RequestError, match="below the run's"):
        read({"prompt": "?", "strength": 0.5}, Defaults(forget=("dog",)))


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[1]",
        b'"text"',
        b"\xff\xfe",
        b'{"prompt": "?", "forget": "dog", "forget": []}',
        b"[" * 100_000,
        b'{"seed": ' + b"1" * 5000 + b"}",
    ],
)
def test_a_line_that_is_no_row_is_refused(line: bytes) -> None:
    with pytest.raises(RequestError):
        parse_line(line)


# Of few letters: the table of all of Unicode takes seconds to make.
texts = st.text(alphabet='ab "{\0é', max_size=8)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ["id", "prompt", "messages", "image", "forget", "strength", "meta", "stop", "x"]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), json_values))
def test_any_row_is_read_or_refused(row: dict[str, Any]) -> None:
    """No row raises anything that would stop a run, and no mask gets lost."""
    try:
        data = parse_line(json.dumps(row).encode())
        found = read(data)
    except RequestError:
        return
    assert (found.extra_args is not None) == (data.get("forget") not in (None, []))
