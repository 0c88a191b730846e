# SPDX-License-Identifier: Apache-2.0
"""Model runner V1: masks into slots before each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import settings
from vllm_sauce.plugin.worker.runtime import SauceRuntime, runtime_of


def install() -> None:
    """Wrap the runner's step; does nothing for a model without a runtime."""
    runner = compat.runner_v1_cls()
    compat.wrap(runner, "_prepare_inputs", _prepare_inputs)
    compat.wrap(runner, "_dummy_run", _dummy_run)


def _runtime(runner: Any) -> SauceRuntime | None:
    runtime = runtime_of(runner.model)
    if runtime is None and settings.from_vllm_config(runner.vllm_config) is not None:
        raise CanaryError(
            "sauce is configured but was not injected into this model (its loader "
            "does not pass BaseModelLoader.load_model); refusing to serve unedited"
        )
    return runtime


def _mask_of_request(runner: Any, runtime: SauceRuntime, req_id: str) -> Any:
    params = runner.requests[req_id].sampling_params
    return runtime.mask_of(getattr(params, "extra_args", None))


def _prepare_inputs(
    original: Callable[..., Any],
    self: Any,
    scheduler_output: Any,
    num_scheduled_tokens: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    # The batch is up to date here and not before: spans read earlier were wrong each
    # time a request had finished.
    runtime = _runtime(self)
    if runtime is not None:
        batch = self.input_batch
        req_ids = batch.req_ids[: batch.num_reqs]
        masks = [_mask_of_request(self, runtime, req_id) for req_id in req_ids]
        runtime.live = dict(zip(req_ids, masks, strict=True))
        runtime.begin_step(masks, [int(n) for n in num_scheduled_tokens])
    return original(self, scheduler_output, num_scheduled_tokens, *args, **kwargs)


def _dummy_run(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    runtime = _runtime(self)
    if runtime is not None and not runtime.in_canary:
        runtime.clear_step()
    return original(self, *args, **kwargs)
