# SPDX-License-Identifier: Apache-2.0
"""The only module that names vLLM's internals.

One function per seam. Each docstring says what it reaches, why, and when it can go.
A seam that is missing raises ``UnsupportedVLLMError`` before the engine starts: an
edit that cannot be placed must never be skipped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from vllm_sauce.errors import UnsupportedVLLMError

SUPPORTED_VLLM = SpecifierSet(">=0.26,<0.34", prereleases=True)


def vllm_version() -> str:
    """Return ``vllm.__version__`` (the CPU wheel has no ``vllm`` distribution)."""
    from vllm import __version__

    return str(__version__)


def check_version() -> None:
    """Refuse a vLLM whose seams nobody has read.

    Raises: UnsupportedVLLMError.
    """
    version = vllm_version()
    if Version(Version(version).base_version) not in SUPPORTED_VLLM:
        raise UnsupportedVLLMError(
            f"vllm-sauce supports vLLM {SUPPORTED_VLLM}, this is {version}; install a "
            "supported vLLM, or remove vllm-sauce to serve without it"
        )


def wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by a function that calls ``around(original, ...)``.

    Raises: UnsupportedVLLMError when vLLM has renamed the seam.
    """
    raw = vars(owner).get(name) if isinstance(owner, type) else getattr(owner, name, 0)
    original = raw.__func__ if isinstance(raw, (staticmethod, classmethod)) else raw
    if not callable(original):
        raise UnsupportedVLLMError(
            f"vLLM {vllm_version()} has no {getattr(owner, '__name__', owner)}.{name}; "
            "update vllm_sauce/plugin/compat.py"
        )

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    if isinstance(raw, (staticmethod, classmethod)):
        setattr(owner, name, type(raw)(wrapper))
    else:
        setattr(owner, name, wrapper)


def logger(name: str) -> Any:
    """Return vLLM's own logger, so that our lines look and filter like its lines."""
    from vllm.logger import init_logger

    return init_logger(f"vllm.{name}")


def engine_args_cls() -> type:
    """``EngineArgs``: flags, the config every entry point builds.

    Why: vLLM has no hook for a plugin's own flags. Remove when it offers one.
    """
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs


def input_processor_cls() -> type:
    """``InputProcessor``: makes the ``EngineCoreRequest`` of every entry point.

    Why: ``LogitsProcessor.validate_params`` cannot set the cache identity and is
    refused with other features. Remove when vLLM has a request-admission hook.
    """
    from vllm.v1.engine.input_processor import InputProcessor

    return InputProcessor


def async_llm_cls() -> type:
    """``AsyncLLM``: its streaming-input sessions are one request with many prompts.

    Why: a session keeps the cache salt of its first chunk and the mask of its last.
    """
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM


def engine_core_cls() -> type:
    """``EngineCore``: ``preprocess_add_request`` is where one request may still fail.

    Why: what is raised later, in the scheduler or a worker, ends the engine.
    """
    from vllm.v1.engine.core import EngineCore

    return EngineCore


def llm_engine_cls() -> type:
    """``LLMEngine``: notes a request before the engine core has taken it.

    Why: one that the core refuses would be waited for, for ever.
    """
    from vllm.v1.engine.llm_engine import LLMEngine

    return LLMEngine


def worker_base_cls() -> type:
    """``WorkerBase``: every device's worker begins here, with the whole config.

    Why: plugins load in processes of all kinds and are not told in which.
    """
    from vllm.v1.worker.worker_base import WorkerBase

    return WorkerBase


def model_loader_cls() -> type:
    """``BaseModelLoader``: the one place both runners and all devices load through.

    Why: the edit must be in the model before profiling and compilation.
    """
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    return BaseModelLoader


def runner_v1_cls() -> type:
    """The V1 ``GPUModelRunner`` (``CPUModelRunner`` inherits it).

    Why: V1 has no per-step hook. Remove with V1.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    return GPUModelRunner


def runner_v2_cls() -> type:
    """The V2 ``GPUModelRunner``; only its ``_dummy_run`` is used, for the canary."""
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    return GPUModelRunner


def encoder_modules() -> Iterator[Any]:
    """The modules that call ``group_and_batch_mm_kwargs``, by a name of their own.

    Why: it is the one function that all encoder runs pass, in both runners and in every
    ``ModelState``, and gets the very pairs that were listed with their identifiers.
    """
    from vllm.v1.worker import gpu_model_runner
    from vllm.v1.worker.gpu.mm import encoder_runner

    yield gpu_model_runner
    yield encoder_runner


def encoder_runner_cls() -> type:
    """V2's ``EncoderRunner``: ``prepare_mm_inputs`` lists, ``execute_mm_encoder`` runs.

    Why: a ``ModelState`` may call these two directly, and in 0.26 and 0.27 all do.
    """
    from vllm.v1.worker.gpu.mm.encoder_runner import EncoderRunner

    return EncoderRunner


def worker_classes() -> Iterator[type]:
    """The worker classes whose ``compile_or_warm_up_model`` ends the warm-up.

    Why: the canary must run in the compiled, captured model, before serving.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        yield CPUWorker
    else:
        from vllm.v1.worker.gpu_worker import Worker

        yield Worker


def model_state_cls(vllm_config: Any, model: Any) -> type:
    """Return the ``ModelState`` class V2 would take for this model.

    0.26 has no ``resolve_model_state_cls``; the model families we accept take
    ``DefaultModelState`` there.
    """
    from vllm.v1.worker.gpu import model_states

    resolve = getattr(model_states, "resolve_model_state_cls", None)
    if resolve is not None:
        cls: type = resolve(vllm_config, model)
        return cls
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    return DefaultModelState


def request_protocols() -> Iterator[type]:
    """Request models of the HTTP API that turn into sampling parameters.

    Why: pydantic keeps unknown body fields in ``model_extra`` and vLLM ignores them,
    so ``"sauce_forget"`` at the top level would be served unedited.
    """
    import importlib

    for module in (
        "vllm.entrypoints.openai.chat_completion.protocol",
        "vllm.entrypoints.openai.completion.protocol",
        "vllm.entrypoints.openai.responses.protocol",
        "vllm.entrypoints.speech_to_text.transcription.protocol",
        "vllm.entrypoints.speech_to_text.translation.protocol",
    ):
        try:
            found = vars(importlib.import_module(module))
        except ModuleNotFoundError:
            continue
        for value in found.values():
            if (
                isinstance(value, type)
                and value.__module__ == module
                and "to_sampling_params" in vars(value)
            ):
                yield value


def online_renderer_cls() -> type:
    """What every HTTP route renders prompts with; ``renderer.config`` is VllmConfig.

    Why: a bad request must be refused before its pictures are noted as sent.
    """
    from vllm.renderers.online_renderer import OnlineRenderer

    return OnlineRenderer


def is_sampling_params(params: Any) -> bool:
    """Tell generation requests from pooling ones."""
    from vllm import SamplingParams

    return isinstance(params, SamplingParams)


def with_extra_args(params: Any, extra_args: Mapping[str, Any] | None) -> Any:
    """Return a copy of ``params`` with other ``extra_args``; the caller's stays."""
    import copy

    changed = copy.copy(params)
    changed.extra_args = None if extra_args is None else dict(extra_args)
    return changed


def client_errors() -> tuple[type[Exception], ...]:
    """Return what vLLM raises for a prompt that cannot be served."""
    import vllm.exceptions

    client_error = getattr(vllm.exceptions, "VLLMClientError", ValueError)
    return ValueError, client_error


def as_client_error(error: Exception) -> Exception:
    """Make vLLM answer 400 for an error of ours; it stays what it was, too.

    Why: the async engine turns what is not a ``VLLMClientError`` into a 500 without its
    message. vLLM versions without that class answer 400 to any ``ValueError``.
    """
    import vllm.exceptions

    client_error = getattr(vllm.exceptions, "VLLMClientError", None)
    if client_error is not None and not isinstance(error, client_error):
        error.__class__ = _client_error_cls(type(error), client_error)
    return error


_client_errors: dict[type, type] = {}


def _client_error_cls(cls: type, client_error: type) -> type:
    if cls not in _client_errors:
        _client_errors[cls] = type(
            cls.__name__, (cls, client_error), {"__module__": cls.__module__}
        )
    return _client_errors[cls]


def resend_images(processor: Any, prompt: Any, request: Any) -> None:
    """Make the API side send the images of a refused prompt again next time.

    A prompt that vLLM has rendered names them; of one that it renders on the way, the
    request does, if it came so far.

    Why: rendering has noted them as already sent to the engine, but a refused request
    never gets there, so the next request with the same image would find no data.
    Remove when: vLLM notes an image as sent only when its request is.
    """
    cache = getattr(processor.renderer, "mm_processor_cache", None)
    invalidate = getattr(cache, "invalidate", None)
    if invalidate is None:
        return
    rendered = isinstance(prompt, Mapping) and prompt.get("mm_hashes") or {}
    named = {mm_hash for hashes in rendered.values() for mm_hash in hashes}
    named.update(f.mm_hash for f in getattr(request, "mm_features", None) or ())
    for mm_hash in named - {None}:
        invalidate(mm_hash)


def rendered_chat(llm: Any, messages: list[dict[str, Any]]) -> Mapping[str, Any]:
    """Return a conversation as ``LLMEngine.add_request`` takes it, ready to be asked.

    Why: ``LLM.chat`` renders anew whatever is asked again under another mask.
    Remove when: ``LLM`` has a public method for it.

    Raises: UnsupportedVLLMError.
    """
    render = getattr(llm, "_preprocess_chat", None)
    if render is None:
        raise UnsupportedVLLMError(
            f"vLLM {vllm_version()} has no LLM._preprocess_chat; update "
            "vllm_sauce/plugin/compat.py"
        )
    (rendered,) = render([messages])
    return rendered


def picture_bytes(pixels: Any) -> int:
    """Return the bytes of a rendered prompt's ``mm_kwargs``.

    Why: only vLLM knows what its processors make of a picture.
    """
    from vllm.multimodal.cache.base import MultiModalCache

    return int(MultiModalCache.get_item_size(pixels))


def is_engine_dead(error: BaseException) -> bool:
    """Tell an engine that has died from a request that it refuses.

    Why: the class is not exported from ``vllm``.
    """
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)


def external_request_id(request_id: str) -> str:
    """Return the id that outputs bear, of one that ``LLM.enqueue`` returned.

    Why: it returns the engine's own ids, ``<number>-<random>``, and ``step`` the
    numbers. Remove when it returns what outputs bear; a number stays as it is.
    """
    return request_id.partition("-")[0]


def decoder_layers(model: Any) -> Any:
    """Return the decoder's ``ModuleList`` of a language or vision-language model.

    Raises: UnsupportedVLLMError.
    """
    for path in (
        ("language_model", "model", "layers"),
        ("model", "layers"),
        ("language_model", "layers"),
    ):
        found = model
        for name in path:
            found = getattr(found, name, None)
            if found is None:
                break
        if found is not None:
            return found
    raise UnsupportedVLLMError(
        f"cannot find the decoder layers of {type(model).__name__}; sauce edits models "
        "with `model.layers` or `language_model.model.layers`"
    )


def local_model_dir(model: str, revision: str | None) -> Path | None:
    """Return the folder that holds the model's files, or None when not on disk yet."""
    path = Path(model)
    if path.is_dir():
        return path
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except Exception:
        # Not downloaded yet (or not a hub name): the caller checks again after load
        # and fails there if the folder still cannot be found.
        return None


@contextmanager
def dummy_embeddings(runner: Any, num_tokens: int) -> Iterator[None]:
    """Let dummy runs of a multimodal model see random embeddings instead of zeros.

    An SAE that normalises its input makes nothing of a zero vector, and so would a
    canary that looks for an effect.
    """
    buffer = getattr(runner, "inputs_embeds", None)  # V1, a CpuGpuBuffer
    rows: Any = None
    if buffer is not None:
        rows = buffer.gpu[:num_tokens]
    elif getattr(runner, "uses_inputs_embeds", False):  # V2
        rows = runner.model_state.dummy_inputs_embeds(num_tokens)
    if rows is None:
        yield
        return
    kept = rows.clone()
    rows.uniform_(-1.0, 1.0)
    try:
        yield
    finally:
        rows.copy_(kept)
