# SPDX-License-Identifier: Apache-2.0
"""Model runner V2: a ``ModelState`` that turns masks into slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from vllm_sauce.plugin import compat
from vllm_sauce.plugin.worker.runtime import SauceRuntime


def offer_model_state(
    model: nn.Module, vllm_config: Any, subclass: Callable[[type], type]
) -> None:
    """Let the model answer V2's ``get_model_state_cls`` with a subclass of its own."""
    own = getattr(model, "get_model_state_cls", None)

    def get_model_state_cls() -> type:
        # Hidden while vLLM resolves the base class, which would ask us again.
        object.__delattr__(model, "get_model_state_cls")
        try:
            base = (
                own() if own is not None else compat.model_state_cls(vllm_config, model)
            )
        finally:
            object.__setattr__(model, "get_model_state_cls", get_model_state_cls)
        return subclass(base)

    object.__setattr__(model, "get_model_state_cls", get_model_state_cls)


def sauce_model_state(base: Any, runtime: SauceRuntime) -> type:
    """Return a subclass of a ``ModelState`` that drives the runtime."""

    class SauceModelState(base):  # type: ignore[misc, valid-type]
        def add_request(self, req_index: int, new_req_data: Any) -> None:
            params = new_req_data.sampling_params
            mask = runtime.mask_of(getattr(params, "extra_args", None))
            runtime.live[new_req_data.req_id] = mask
            super().add_request(req_index, new_req_data)

        def remove_request(self, req_id: str) -> None:
            runtime.live.pop(req_id, None)
            super().remove_request(req_id)

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
            # Dummy batches come here too; their request ids have no mask.
            if not runtime.in_canary:
                runtime.begin_step(
                    [runtime.live.get(req_id) for req_id in input_batch.req_ids],
                    [int(n) for n in input_batch.num_scheduled_tokens],
                )
            return super().prepare_inputs(input_batch, req_states)

        def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> Any:
            if not runtime.in_canary:
                runtime.clear_step()
            return super().prepare_dummy_inputs(num_reqs, num_tokens)

    return SauceModelState
