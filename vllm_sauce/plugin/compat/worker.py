# SPDX-License-Identifier: Apache-2.0
"""vLLM in the processes of an engine: its core, workers, runners and models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from vllm_sauce.errors import UnsupportedVLLMError
from vllm_sauce.plugin.compat.ranks import is_first_stage, is_last_stage
from vllm_sauce.plugin.compat.version import seam_owner, vllm_version, wrap


def add_worker_call(name: str, method: Callable[[Any], Any]) -> None:
    """Give every worker a method that ``collective_rpc`` can call by its name.

    Why: an API process did not start the engine and cannot see its configuration.

    Raises: UnsupportedVLLMError when vLLM has such a method itself.
    """
    owner = seam_owner("all", "WorkerBase.__init__")
    if getattr(owner, name, method) is not method:
        raise UnsupportedVLLMError(
            f"vLLM {vllm_version()} has a {owner.__name__}.{name} of its own; update "
            "vllm_sauce/plugin/compat/"
        )
    setattr(owner, name, method)


def prompt_length(new_request: Any) -> int:
    """Return how many tokens a new request's prompt has; embeddings have no ids."""
    ids = new_request.prompt_token_ids
    return len(new_request.prompt_embeds if ids is None else ids)


def on_cpu() -> bool:
    """Tell whether vLLM's platform is the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def hook_worker(name: str, around: Callable[..., Any], *, needed: bool = True) -> None:
    """``wrap`` a method of this platform's worker in the class that defines it.

    Why: CPU workers inherit some of the GPU worker's methods and override others.
    Raises: UnsupportedVLLMError for one that is needed and gone.
    """
    if on_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker as Worker
    else:
        from vllm.v1.worker.gpu_worker import Worker
    owner = next((cls for cls in Worker.__mro__ if name in vars(cls)), None)
    if owner is not None:
        wrap(owner, name, around)
    elif needed:
        raise UnsupportedVLLMError(
            f"vLLM {vllm_version()} has no worker method {name}; update "
            "vllm_sauce/plugin/compat/"
        )


def model_state_cls(vllm_config: Any, model: Any) -> type:
    """Return the ``ModelState`` class V2 would take for this model.

    0.26 - 0.28 have no ``resolve_model_state_cls``: there only what takes
    ``DefaultModelState`` is let through.

    Raises: UnsupportedVLLMError.
    """
    from vllm.v1.worker.gpu import model_states

    resolve = getattr(model_states, "resolve_model_state_cls", None)
    if resolve is not None:
        cls: type = resolve(vllm_config, model)
        return cls
    config = vllm_config.model_config
    for kind in ("is_encoder_decoder", "is_hybrid", "is_attention_free"):
        if getattr(config, kind):
            raise UnsupportedVLLMError(
                f"a model that {kind.replace('_', ' ')} needs vLLM 0.29 or later with "
                f"sauce, this is {vllm_version()}"
            )
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    return DefaultModelState


def clear_dummy_state(model: Any) -> None:
    """Let the next dummy batch begin as the last one did.

    Layers with a state (Mamba, convolutions, gated delta nets) read in the null block,
    which no request has, what the dummy batch before has left there.
    """
    for layer in _with_state(model):
        for state in getattr(layer, "kv_cache", ()):
            state[:1].zero_()


def has_state(model: Any) -> bool:
    """Say whether a model has layers with a state beside, or instead of, attention."""
    return next(_with_state(model), None) is not None


def _with_state(model: Any) -> Iterator[Any]:
    from vllm.model_executor.layers.mamba.abstract import MambaBase

    return (one for one in model.modules() if isinstance(one, MambaBase))


@contextmanager
def _run_as_written(model: Any) -> Iterator[None]:
    """Let a model run as its source says, without what is compiled and cached.

    What attention makes of a dummy batch depends on the cache's garbage: in hybrid
    models that is states of other layers, and not a number.
    """
    from vllm.model_executor.layers.attention.attention import Attention

    compiled = [one for one in model.modules() if hasattr(one, "do_not_compile")]
    kept = [one.do_not_compile for one in compiled]
    attention = [one for one in model.modules() if isinstance(one, Attention)]
    for one in compiled:
        one.do_not_compile = True
    for one in attention:
        one.forward = partial(_nothing, one)
    try:
        yield
    finally:
        for one, value in zip(compiled, kept, strict=True):
            one.do_not_compile = value
        for one in attention:
            del one.forward


def _nothing(
    attention: Any,
    query: Any,
    key: Any,
    value: Any,
    output_shape: Any = None,
    output_dtype: Any = None,
) -> Any:
    width = attention.num_heads * attention.head_size_v
    shape = output_shape or (query.shape[0], width)
    return query.new_zeros(shape, dtype=output_dtype)


def tokens_without_graph(vllm_config: Any) -> tuple[int, bool]:
    """Return how many dummy tokens no graph is replayed for, and whether there are.

    There are none if graphs are captured up to all tokens that a step may have.
    """
    captured = max(vllm_config.compilation_config.cudagraph_capture_sizes or [15])
    most = vllm_config.scheduler_config.max_num_batched_tokens
    return min(captured + 1, most), captured < most


def dummy_output(runner: Any) -> Any:
    """Return a model's output for dummy tokens: no graph, nothing attended to.

    Shapes: -> [num_tokens, d_model] float32
    """
    num_tokens, without = tokens_without_graph(runner.vllm_config)
    clear_dummy_state(runner.model)
    left: list[Any] = []
    # V2 returns nothing of a stage that is not the last.
    seen = runner.get_model().register_forward_hook(
        lambda _, __, output: left.append(output)
    )
    try:
        with _run_as_written(runner.model):
            # Neither runner replays a graph for a profile, but V2 leaves out what
            # layers with a state need.
            hidden, _ = runner._dummy_run(
                num_tokens, force_attention=True, is_profile=not without
            )
    finally:
        seen.remove()
    return stream_left(hidden if is_last_stage() else left[0])


def stream_left(output: Any) -> Any:
    """Return the stream that a stage leaves, whichever way it hands it on.

    Shapes: -> [num_tokens, d_model] float32
    """
    if not hasattr(output, "tensors"):  # the last: hidden states
        return output.float().clone()
    tensors = output.tensors
    stream = tensors["hidden_states"].float().clone()
    residual = tensors.get("residual")
    return stream if residual is None else stream + residual.float()


def dummy_picture(vllm_config: Any, like: Any) -> dict[str, Any]:
    """Return what ``embed_multimodal`` takes of the picture that vLLM profiles with.

    On the device of a tensor.
    """
    from vllm.multimodal import MULTIMODAL_REGISTRY as registry
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    model_config = vllm_config.model_config
    processor = registry.create_processor(model_config)
    counts = {"image": 1}
    if hasattr(processor, "get_dummy_mm_inputs"):
        made = processor.get_dummy_mm_inputs(counts)
    else:
        made = registry.get_dummy_mm_inputs(model_config, counts, processor=processor)
    (item,) = made["mm_kwargs"]["image"]
    ((_, _, inputs),) = group_and_batch_mm_kwargs([("image", item)], device=like.device)
    return dict(inputs)


@contextmanager
def dummy_embeddings(runner: Any, num_tokens: int) -> Iterator[None]:
    """Let dummy runs see random embeddings, or stages' inputs, instead of zeros.

    An SAE that normalises its input makes nothing of a zero vector, and so would a
    canary that looks for an effect.
    """
    import torch

    buffer = getattr(runner, "inputs_embeds", None)  # V1, a CpuGpuBuffer
    rows: Any = None
    if not is_first_stage():
        if runner.intermediate_tensors is None:  # V1, which makes it in its first run
            runner._dummy_run(num_tokens)
        rows = runner.intermediate_tensors[:num_tokens]["hidden_states"]
    elif buffer is not None:
        rows = buffer.gpu[:num_tokens]
    elif getattr(runner, "uses_inputs_embeds", runner.supports_mm_inputs):
        # V2; until 0.28 only multimodal models use embeddings, and it does not say so.
        rows = runner.model_state.dummy_inputs_embeds(num_tokens)
    if rows is None:
        yield
        return
    kept = rows.clone()
    # The same on all ranks, whatever each has drawn before.
    seeded = torch.Generator(rows.device).manual_seed(0)
    rows.uniform_(-1.0, 1.0, generator=seeded)
    try:
        yield
    finally:
        rows.copy_(kept)
