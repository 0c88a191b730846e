# SPDX-License-Identifier: Apache-2.0
"""What Model runner V2's ``ModelState`` tells an action."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from tests.plugin.worker.doubles import FOUR_TOKENS, PICTURE, Told
from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin.sites.action import run_encoder
from vllm_sauce.plugin.worker import runner_v2


class State:
    """A ``ModelState`` of vLLM's."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        self.calls.append(f"add {req_index}")

    def remove_request(self, req_id: str) -> None:
        self.calls.append(f"remove {req_id}")

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
        return "inputs"

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> Any:
        return "dummy inputs"


def new(name: str, label: Any) -> Any:
    return SimpleNamespace(
        req_id=name,
        sampling_params=SimpleNamespace(extra_args={"label": label}),
        mm_features=[PICTURE],
        prompt_token_ids=[1, 2, 3, 4],
    )


def batch(*req_ids: str) -> Any:
    return SimpleNamespace(
        req_ids=list(req_ids),
        num_reqs=len(req_ids),
        num_computed_tokens_np=np.arange(9),
        num_scheduled_tokens=np.full(len(req_ids), 3),
    )


def states(*req_ids: str) -> Any:
    """Return the runner's own table of the requests that it holds."""
    return SimpleNamespace(req_id_to_index={name: i for i, name in enumerate(req_ids)})


def state_of(told: Told) -> Any:
    return runner_v2.telling_state(State, told)()


def test_requests_come_run_and_go() -> None:
    told = Told()
    state = state_of(told)
    state.add_request(0, new("a", "m"))
    state.add_request(1, new("b", None))
    assert told.notes == [
        ("begins", "m", [PICTURE]),
        ("begins", None, [PICTURE]),
    ]
    assert state.prepare_inputs(batch("b", "a"), states("a", "b")) == "inputs"
    assert told.notes[-1] == ([None, "m"], [0, 1], [3, 3])
    assert list(told.prompts["a"].spans(0, 5)) == FOUR_TOKENS
    state.remove_request("a")
    assert told.live == {"b": None} and told.prompts == {}
    assert state.calls == ["add 0", "add 1", "remove a"]


def test_an_id_that_comes_again_is_the_new_request() -> None:
    told = Told()
    state = state_of(told)
    for label in ("m", "n"):
        state.add_request(0, new("a", label))
        state.prepare_inputs(batch("a"), states("a"))
        assert told.notes[-1][0] == [label]


def test_a_request_that_nobody_told_of_is_not_served() -> None:
    told = Told()
    state = state_of(told)
    state.add_request(0, new("a", "m"))
    with pytest.raises(CanaryError, match="request 'b' is in a batch"):
        state.prepare_inputs(batch("a", "b"), states("a", "b"))


def test_dummy_batches_have_no_labels_but_the_canarys_stay() -> None:
    told = Told()
    state = state_of(told)
    state.prepare_inputs(batch("dummy"), states("a"))
    assert told.notes == [([], [], [])]
    assert state.prepare_dummy_inputs(1, 3) == "dummy inputs"
    assert told.notes[1:] == ["cleared"]
    told.in_canary = True
    state.prepare_inputs(batch("dummy"), None)
    state.prepare_dummy_inputs(1, 3)
    assert len(told.notes) == 2


@pytest.mark.parametrize("own", [True, False])
def test_vllm_is_offered_a_subclass_of_its_own_choice(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """It asks the model again while it chooses, and must then get the model's own."""

    class Model(nn.Module):
        if own:

            def get_model_state_cls(self) -> type:
                return State

    def chosen(vllm_config: Any, model: Any) -> type:
        assert not hasattr(model, "get_model_state_cls")
        return State

    monkeypatch.setattr("vllm_sauce.plugin.compat.model_state_cls", chosen)
    model = Model()
    runner_v2.offer_model_state(model, None, Told())
    for _ in range(2):
        cls: Any = model.get_model_state_cls()  # type: ignore[operator]
        assert issubclass(cls, State) and cls is not State


def test_an_encoder_run_is_told_and_ended() -> None:
    told = Told()
    told.live = {"a": "m"}
    runner = SimpleNamespace(model=SimpleNamespace(_sauce_action=told))
    listed = ["p"], [("image", object())]
    found = runner_v2._prepare_mm_inputs(lambda *_: listed, runner, {"a": [0]})
    assert found == listed
    assert told.notes == [(["p"], ["a"])]
    with pytest.raises(CanaryError, match="1 pictures that must be edited"):
        run_encoder(lambda *_: "encoded", runner)
    plain = SimpleNamespace(model=object())
    assert runner_v2._prepare_mm_inputs(lambda *_: listed, plain, {}) == listed
    assert run_encoder(lambda *_: "encoded", plain) == "encoded"
