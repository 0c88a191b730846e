# SPDX-License-Identifier: Apache-2.0
"""The only place that names vLLM's internals.

One function per seam. Each docstring says what it reaches, why, and when it can go.
A seam that is missing raises ``UnsupportedVLLMError`` before the engine starts: an
edit that cannot be placed must never be skipped.
"""

# ruff: noqa: F401

from vllm_sauce.plugin.compat.frontend import (
    add_innermost_middleware,
    as_client_error,
    async_llm_cls,
    client_errors,
    engine_args_cls,
    http_app_module,
    input_processor_cls,
    is_sampling_params,
    llm_engine_cls,
    messages_carry,
    resend_images,
    route_path,
    run_batch_module,
    rust_frontend,
    takes_pictures,
    with_extra_args,
    wrap_batch_lines,
)
from vllm_sauce.plugin.compat.offline import (
    external_request_id,
    is_engine_dead,
    local_model_dir,
    picture_bytes,
    rendered_chat,
)
from vllm_sauce.plugin.compat.version import (
    SUPPORTED_VLLM,
    check_version,
    logger,
    vllm_version,
    wrap,
    wrap_function,
)
from vllm_sauce.plugin.compat.worker import (
    add_worker_call,
    dummy_embeddings,
    encoder_modules,
    encoder_runner_cls,
    engine_core_cls,
    model_loader_cls,
    model_state_cls,
    on_cpu,
    runner_v1_cls,
    worker_base_cls,
    worker_cls,
    worker_method_owner,
)
