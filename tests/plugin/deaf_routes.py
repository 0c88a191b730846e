# SPDX-License-Identifier: Apache-2.0
"""Routes of vLLM's that carry no wish to forget: somebody has read each of them."""

from __future__ import annotations

from vllm_sauce.plugin.frontend.routes import ROUTES

DEAF = frozenset(
    (
        # These generate with parameters of their own, or from a form: what is
        # mandatory is forgotten, for admission sees their parameters.
        "/generative_scoring",
        "/v1/decisions",
        "/v1/systemone",
        "/cohere/v2/chat",
        "/cohere/v2/chat/render",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        # Pooling, which admission refuses.
        "/pooling",
        "/classify",
        "/score",
        "/v1/score",
        "/rerank",
        "/v1/rerank",
        "/v2/rerank",
        "/v1/embeddings",
        "/v2/embed",
        # These answer without the model.
        "/v1/messages/count_tokens",
        "/v1/responses/{response_id}/cancel",
        "/tokenize",
        "/detokenize",
        "/inference/v1/abort_requests",
        "/abort_requests",
        "/metrics",
        "/ping",
        "/static",
        "/adapters",
        "/adapters/{adapter_name}",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/scale_elastic_ep",
        "/is_scaling_elastic_ep",
        "/fault_tolerance/apply",
        "/start_profile",
        "/stop_profile",
        # VLLM_SERVER_DEV_MODE: the operator's.
        "/collective_rpc",
        "/reset_prefix_cache",
        "/reset_mm_cache",
        "/reset_encoder_cache",
        "/sleep",
        "/wake_up",
        "/release_kv_cache_memory",
        "/pause",
        "/resume",
        "/init_weight_transfer_engine",
        "/shutdown_weight_transfer_engine",
        "/start_weight_update",
        "/start_draft_weight_update",
        "/update_weights",
        "/finish_weight_update",
        "/update_weight_version",
        "/weight_checker",
    )
)
"""A wish in their bodies is refused, as on any route that is not in ``ROUTES``."""

DECIDED = DEAF | ROUTES.keys()
