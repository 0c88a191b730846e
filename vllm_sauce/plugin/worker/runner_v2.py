# SPDX-License-Identifier: Apache-2.0
"""Model runner V2: a ``ModelState`` that tells a model's action of each step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from vllm_sauce.plugin import compat
from vllm_sauce.plugin.sites.action import SiteAction, action_of, run_encoder


def install() -> None:
    """Wrap what runs the encoder; steps come through ``offer_model_state``."""
    compat.hook("v2", "EncoderRunner.prepare_mm_inputs", _prepare_mm_inputs)
    compat.hook("v2", "EncoderRunner.execute_mm_encoder", run_encoder)


def offer_model_state(model: nn.Module, vllm_config: Any, action: SiteAction) -> None:
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
        return telling_state(base, action)

    object.__setattr__(model, "get_model_state_cls", get_model_state_cls)


def telling_state(base: Any, action: SiteAction) -> type:
    """Return a subclass of a ``ModelState`` that tells an action what a step holds."""

    class SauceModelState(base):  # type: ignore[misc, valid-type]
        def add_request(self, req_index: int, new_req_data: Any) -> None:
            params = new_req_data.sampling_params
            action.add_request(new_req_data.req_id, params, new_req_data)
            super().add_request(req_index, new_req_data)

        def remove_request(self, req_id: str) -> None:
            action.remove_request(req_id)
            super().remove_request(req_id)

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
            # Dummy batches come here too; the runner knows none of their requests.
            if not action.in_canary:
                action.tell_step(
                    input_batch.req_ids,
                    input_batch.num_computed_tokens_np[: input_batch.num_reqs],
                    np.asarray(input_batch.num_scheduled_tokens),
                    req_states.req_id_to_index,
                )
            return super().prepare_inputs(input_batch, req_states)

        def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> Any:
            if not action.in_canary:
                action.clear_step()
            return super().prepare_dummy_inputs(num_reqs, num_tokens)

    return SauceModelState


def _prepare_mm_inputs(
    original: Callable[..., Any], self: Any, scheduled_encoder_inputs: Any
) -> Any:
    identifiers, pairs = original(self, scheduled_encoder_inputs)
    if (action := action_of(self.model)) is not None:
        action.announce(identifiers, pairs, list(scheduled_encoder_inputs))
    return identifiers, pairs
