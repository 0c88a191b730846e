# SPDX-License-Identifier: Apache-2.0
"""What Model runner V1 tells an action, hook by hook."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.plugin.worker.doubles import FOUR_TOKENS, PICTURE, Told
from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin.sites.action import run_encoder
from vllm_sauce.plugin.worker import runner_v1


def params(label: Any) -> Any:
    return SimpleNamespace(extra_args=None if label is None else {"label": label})


def runner(action: Any, **configured: Any) -> Any:
    """Return a runner with two requests, and room for three in its arrays."""
    return SimpleNamespace(
        model=SimpleNamespace(**({} if action is None else {"_sauce_action": action})),
        vllm_config=SimpleNamespace(additional_config=configured),
        input_batch=SimpleNamespace(
            req_ids=["b", "a", "left over"],
            num_reqs=2,
            num_computed_tokens_cpu=np.array([4, 0, 9]),
        ),
    )


def scheduled(finished: Sequence[str] = (), **new: Any) -> Any:
    """Return a scheduler's output; new requests by name, with their labels."""
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(
                req_id=name,
                mm_features=[PICTURE],
                prompt_token_ids=[1, 2, 3, 4],
                sampling_params=params(label),
            )
            for name, label in new.items()
        ],
        finished_req_ids=finished,
        scheduled_encoder_inputs={"a": [0]},
    )


def original(self: Any, *args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def test_a_step_is_told_in_the_order_of_the_batch() -> None:
    """New requests first; one that waits stays known, one that ended does not."""
    told = Told()
    one = runner(told)
    first = scheduled(a="m", b=None, waits="n")
    assert runner_v1._update_states(original, one, first) == ((first,), {})
    begun = [("begins", label, [PICTURE]) for label in ("m", None, "n")]
    assert told.notes == begun
    args = (first, np.array([1, 7]), "more")
    assert runner_v1._prepare_inputs(original, one, *args) == (args, {})
    assert told.notes == [*begun, ([None, "m"], [4, 0], [1, 7])]
    assert told.live == {"a": "m", "b": None, "waits": "n"}
    assert list(told.prompts["a"].spans(0, 5)) == FOUR_TOKENS
    one.input_batch = SimpleNamespace(
        req_ids=["b"], num_reqs=1, num_computed_tokens_cpu=np.array([0])
    )
    # A name that ended comes again, with another label.
    again = scheduled(finished=["a", "b"], b="m")
    runner_v1._update_states(original, one, again)
    runner_v1._prepare_inputs(original, one, again, np.array([1]))
    assert told.notes[-1] == (["m"], [0], [1])
    assert told.live == {"b": "m", "waits": "n"}
    assert set(told.prompts) == {"b", "waits"}


def test_a_request_that_nobody_told_of_is_not_served() -> None:
    told = Told()
    one = runner(told)
    runner_v1._update_states(original, one, scheduled(a="m"))
    with pytest.raises(CanaryError, match="request 'b' is in a batch"):
        runner_v1._prepare_inputs(original, one, scheduled(), np.array([1, 7]))


def test_dummy_runs_clear_but_for_the_canarys() -> None:
    told = Told()
    runner_v1._dummy_run(original, runner(told), 8)
    assert told.notes == ["cleared"]
    told.in_canary = True
    runner_v1._dummy_run(original, runner(told), 8)
    assert told.notes == ["cleared"]


def test_an_encoder_run_is_told_and_ended() -> None:
    told = Told()
    told.live = {"a": "m"}
    pairs = [("image", object())]

    def lists(self: Any, scheduler_output: Any) -> Any:
        return ["p"], pairs, "more"

    assert runner_v1._batch_mm_inputs(lists, runner(told), scheduled())[1] is pairs
    assert told.notes == [(["p"], ["a"])]
    assert told.announced is not None and told.announced.expects(pairs)
    with pytest.raises(CanaryError, match="1 pictures that must be edited"):
        run_encoder(original, runner(told))


def test_pictures_that_are_attended_to_come_as_the_batch_does() -> None:
    """Their keys' places in the cache do; elsewhere nobody minds."""
    told, output = Told(), scheduled()
    told.live = {"a": None, "b": None}
    output.scheduled_encoder_inputs = {"b": [0], "a": [0]}
    seen: list[list[str]] = []

    def lists(self: Any, scheduler_output: Any) -> Any:
        seen.append(list(scheduler_output.scheduled_encoder_inputs))
        return ["p", "q"], [("image", object()), ("image", object())], []

    runner_v1._batch_mm_inputs(lists, runner(told), output)
    told.picture_word = 7
    at = runner(told)
    at.input_batch.req_ids = ["a", "c", "b"]
    runner_v1._batch_mm_inputs(lists, at, output)
    assert seen == [["b", "a"], ["a", "b"]]


@pytest.mark.parametrize("section", ["sauce", "sauce_harvest"])
def test_a_model_without_its_action_is_not_run(section: str) -> None:
    """Its loader went around the hook; a plain engine's model needs none."""
    args = scheduled(), np.array([1, 7])
    for hook in (runner_v1._prepare_inputs, runner_v1._dummy_run):
        with pytest.raises(CanaryError, match="was not injected into this model"):
            hook(original, runner(None, **{section: {}}), *args)
        assert hook(original, runner(None), *args) == (args, {})
    assert run_encoder(original, runner(None), 1) == ((1,), {})
