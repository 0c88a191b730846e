# SPDX-License-Identifier: Apache-2.0
"""Model runner V1: tells a model's action of each step and of each encoder run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.sites.action import SiteAction, action_of, run_encoder
from vllm_sauce.plugin.startup import settings


def install() -> None:
    """Wrap the runner; does nothing for a model without an action."""
    for name, around in (
        ("_update_states", _update_states),
        ("_prepare_inputs", _prepare_inputs),
        ("_dummy_run", _dummy_run),
        ("_batch_mm_inputs_from_scheduler", _batch_mm_inputs),
        ("_execute_mm_encoder", _execute_mm_encoder),
    ):
        compat.hook("v1", f"GPUModelRunner.{name}", around)


def _action(runner: Any) -> SiteAction | None:
    action = action_of(runner.model)
    if action is None and settings.wants_action(runner.vllm_config):
        raise CanaryError(
            "sauce is configured but was not injected into this model (its loader "
            "does not pass BaseModelLoader.load_model); refusing to serve unedited"
        )
    return action


def _update_states(
    original: Callable[..., Any], self: Any, scheduler_output: Any
) -> Any:
    # Called for each step, also for one that only tells of requests that ended.
    if (action := _action(self)) is not None:
        for req_id in scheduler_output.finished_req_ids:
            action.remove_request(req_id)
        for new in scheduler_output.scheduled_new_reqs:
            action.add_request(new.req_id, new.sampling_params, new)
    return original(self, scheduler_output)


def _prepare_inputs(
    original: Callable[..., Any],
    self: Any,
    scheduler_output: Any,
    num_scheduled_tokens: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    # The batch is in its order here and not before: spans read earlier were wrong each
    # time a request had finished.
    if (action := _action(self)) is not None:
        batch = self.input_batch
        action.tell_step(
            batch.req_ids[: batch.num_reqs],
            batch.num_computed_tokens_cpu[: batch.num_reqs],
            num_scheduled_tokens,
        )
    return original(self, scheduler_output, num_scheduled_tokens, *args, **kwargs)


def _dummy_run(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    action = _action(self)
    if action is not None and not action.in_canary:
        action.clear_step()
    return original(self, *args, **kwargs)


def _execute_mm_encoder(
    original: Callable[..., Any], self: Any, scheduler_output: Any, *args: Any
) -> Any:
    # Most steps have no picture, and a run ends with nothing announced.
    if not scheduler_output.scheduled_encoder_inputs:
        return original(self, scheduler_output, *args)
    return run_encoder(original, self, scheduler_output, *args)


def _batch_mm_inputs(
    original: Callable[..., Any], self: Any, scheduler_output: Any, *args: Any
) -> Any:
    if not scheduler_output.scheduled_encoder_inputs:
        return original(self, scheduler_output, *args)
    action = action_of(self.model)
    if action is not None and action.picture_word is not None:
        # The keys' places in the cache come in the order of the batch, and after a
        # preemption that is not the scheduler's; V2 sorts these itself.
        scheduled = scheduler_output.scheduled_encoder_inputs
        scheduler_output.scheduled_encoder_inputs = {
            name: scheduled[name]
            for name in self.input_batch.req_ids
            if name in scheduled
        }
    batched = original(self, scheduler_output, *args)
    if action is not None:
        req_ids = list(scheduler_output.scheduled_encoder_inputs)
        action.announce(batched[0], batched[1], req_ids)
    return batched
