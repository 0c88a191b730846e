# SPDX-License-Identifier: Apache-2.0
"""Where vLLM's versions differ: each form of a thing is found, or refused."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch

from vllm_sauce.errors import UnsupportedVLLMError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.compat import version


class Notes:
    """vLLM's memory of the pictures it has sent to the engine, as until 0.27."""

    def __init__(self, *hashes: str) -> None:
        self._cache = dict.fromkeys(hashes, "sent")


class NotesWithInvalidate(Notes):
    """The same from 0.28 on; where it keeps them is its own business."""

    def __init__(self, *hashes: str) -> None:
        self.kept = dict.fromkeys(hashes, "sent")

    def invalidate(self, mm_hash: str) -> None:
        self.kept.pop(mm_hash, None)


def processor(cache: Any) -> Any:
    return types.SimpleNamespace(
        renderer=types.SimpleNamespace(mm_processor_cache=cache)
    )


REFUSED = {"mm_hashes": {"image": ["a", "never sent"]}}


def test_a_refused_requests_pictures_are_sent_again() -> None:
    old, new = Notes("a", "b"), NotesWithInvalidate("a", "b")
    compat.resend_images(processor(old), REFUSED)
    compat.resend_images(processor(new), REFUSED)
    assert list(old._cache) == list(new.kept) == ["b"]


def test_a_refused_request_without_notes_or_pictures_is_no_fault() -> None:
    notes = Notes("a")
    for prompt in ("words", [1, 2], {"prompt_token_ids": [1]}, {"mm_hashes": None}):
        compat.resend_images(processor(notes), prompt)
    compat.resend_images(processor(None), REFUSED)
    assert list(notes._cache) == ["a"]


@pytest.mark.parametrize(
    "name", ["vllm.multimodal.cache", "vllm.multimodal.cache.base"]
)
def test_pictures_are_measured_wherever_vllm_does_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``vllm.multimodal.cache`` is one module until 0.30, a package from 0.31 on."""

    class MultiModalCache:
        @classmethod
        def get_item_size(cls, value: Any) -> int:
            return len(value)

    for module in ("vllm.multimodal.cache", "vllm.multimodal.cache.base"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    if name == "vllm.multimodal.cache":
        monkeypatch.delitem(sys.modules, "vllm.multimodal.cache.base")
    monkeypatch.setattr(
        sys.modules[name], "MultiModalCache", MultiModalCache, raising=False
    )
    assert compat.picture_bytes("four") == 4


def model_config(**kinds: bool) -> Any:
    kind = dict.fromkeys(
        ("is_encoder_decoder", "is_hybrid", "is_attention_free"), False
    )
    return types.SimpleNamespace(
        model_config=types.SimpleNamespace(**{**kind, **kinds})
    )


@pytest.fixture
def before_0_29(monkeypatch: pytest.MonkeyPatch) -> type:
    """A V2 that cannot be asked which class it would take; returns its default one."""
    states = types.ModuleType("model_states")
    default = types.ModuleType("default")
    default.DefaultModelState = type("DefaultModelState", (), {})  # type: ignore[attr-defined]
    package = "vllm.v1.worker.gpu"
    monkeypatch.setitem(sys.modules, f"{package}.model_states", states)
    monkeypatch.setitem(sys.modules, f"{package}.model_states.default", default)
    import vllm.v1.worker.gpu

    monkeypatch.setattr(vllm.v1.worker.gpu, "model_states", states, raising=False)
    cls: type = default.DefaultModelState
    return cls


def test_until_0_28_the_default_state_is_taken(before_0_29: type) -> None:
    assert compat.model_state_cls(model_config(), object()) is before_0_29


@pytest.mark.parametrize(
    "kind", ["is_encoder_decoder", "is_hybrid", "is_attention_free"]
)
def test_until_0_28_other_states_are_refused(before_0_29: type, kind: str) -> None:
    with pytest.raises(UnsupportedVLLMError, match=r"needs vLLM 0\.29 or later"):
        compat.model_state_cls(model_config(**{kind: True}), object())


@pytest.mark.parametrize(
    "says", [{"uses_inputs_embeds": True}, {}], ids=["0.29", "until 0.28"]
)
def test_v2s_dummy_runs_see_no_zeros(says: dict[str, bool]) -> None:
    """Nothing comes of a zero vector in an SAE that normalises its input."""
    rows = torch.zeros(8, 4)
    state = types.SimpleNamespace(dummy_inputs_embeds=lambda count: rows[:count])
    runner = types.SimpleNamespace(supports_mm_inputs=True, model_state=state, **says)
    with compat.dummy_embeddings(runner, 6):
        assert rows[:6].any(dim=1).all()
        assert not rows[6:].any()
    assert not rows.any()


@pytest.mark.parametrize(
    "says", [{"uses_inputs_embeds": False}, {}], ids=["0.29", "until 0.28"]
)
def test_v2_without_embeddings_is_left_alone(says: dict[str, bool]) -> None:
    runner = types.SimpleNamespace(supports_mm_inputs=False, **says)
    with compat.dummy_embeddings(runner, 6):
        pass


def test_a_hook_reaches_who_has_imported_the_function(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """vLLM's other modules, and nobody else's."""

    def answer() -> int:
        return 1

    modules = [types.ModuleType(name) for name in ("vllm.home", "vllm.other", "theirs")]
    for module in modules:
        monkeypatch.setattr(module, "answer", answer, raising=False)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(version, "seam_owner", lambda *_: modules[0])
    compat.hook("http", "answer", lambda original: original() + 1, imported=True)
    assert [module.answer() for module in modules] == [2, 2, 1]
