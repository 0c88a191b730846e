# SPDX-License-Identifier: Apache-2.0
"""The only place that names vLLM's internals.

What is hooked is a row of ``seams``; what differs between versions is a function here.
Each says what it reaches, why, and when it can go. A seam that is missing raises
``UnsupportedVLLMError`` before the engine starts: an edit that cannot be placed must
never be skipped.
"""

# ruff: noqa: F401

from vllm_sauce.plugin.compat.frontend import (
    abort,
    add_innermost_middleware,
    as_client_error,
    call_workers,
    is_sampling_params,
    messages_carry,
    modalities,
    read_no_prefix,
    resend_images,
    route_path,
    rust_frontend,
    takes_pictures,
    uses_modelscope,
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
from vllm_sauce.plugin.compat.ranks import (
    is_elsewhere,
    is_first_stage,
    is_last_stage,
    of_all_ranks,
    together,
)
from vllm_sauce.plugin.compat.version import (
    SUPPORTED_VLLM,
    check_version,
    hook,
    logger,
    seam_owner,
    vllm_version,
    wrap,
)
from vllm_sauce.plugin.compat.worker import (
    add_worker_call,
    clear_dummy_state,
    dummy_embeddings,
    dummy_output,
    dummy_picture,
    has_state,
    hook_worker,
    model_state_cls,
    on_cpu,
    prompt_length,
    stream_left,
    tokens_without_graph,
)
