# SPDX-License-Identifier: Apache-2.0
"""The only module that names vLLM's internals.

One function per seam. Each docstring says what it reaches, why, and when it can go.
A seam that is missing raises ``UnsupportedVLLMError`` before the engine starts: an
edit that cannot be placed must never be skipped.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from vllm_sauce.errors import UnsupportedVLLMError

SUPPORTED_VLLM = SpecifierSet(">=0.26,<0.33", prereleases=True)
"""What scripts/versions ran (docs/compatibility.md), and 0.26, whose CPU build does not
install: its seams are recorded from its source (tests/plugin/test_seams.py)."""


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
    """``AsyncLLM``: its streaming sessions, and what a server awaits at its start.

    Why: a session keeps the cache salt of its first chunk and the mask of its last; and
    vLLM's handshake with the engine compares nothing of ``additional_config``.
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


def add_worker_call(name: str, method: Callable[[Any], Any]) -> None:
    """Give every worker a method that ``collective_rpc`` can call by its name.

    Why: an API process did not start the engine and cannot see its configuration.

    Raises: UnsupportedVLLMError when vLLM has such a method itself.
    """
    owner = worker_base_cls()
    if getattr(owner, name, method) is not method:
        raise UnsupportedVLLMError(
            f"vLLM {vllm_version()} has a {owner.__name__}.{name} of its own; update "
            "vllm_sauce/plugin/compat.py"
        )
    setattr(owner, name, method)


def rust_frontend() -> bool:
    """Tell whether vLLM is to serve HTTP from its Rust program.

    Why: it runs no Python, so nothing of a request passes admission.
    """
    from vllm import envs

    return bool(getattr(envs, "VLLM_USE_RUST_FRONTEND", False))


def takes_pictures(vllm_config: Any) -> bool:
    """Tell whether a request may bring a picture; vLLM leaves out the tower if not."""
    multimodal = vllm_config.model_config.multimodal_config
    return multimodal is None or multimodal.get_limit_per_prompt("image") > 0


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


def on_cpu() -> bool:
    """Tell whether vLLM's platform is the CPU."""
    from vllm.platforms import current_platform

    return bool(current_platform.is_cpu())


def worker_classes() -> Iterator[type]:
    """The worker classes whose ``compile_or_warm_up_model`` ends the warm-up.

    Why: the canary must run in the compiled, captured model, before serving.
    """
    if on_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        yield CPUWorker
    else:
        from vllm.v1.worker.gpu_worker import Worker

        yield Worker


def worker_method_owner(name: str, *, needed: bool = True) -> type | None:
    """Return the class that defines a method of this platform's worker.

    Why: CPU workers inherit some of the GPU worker's methods and override others.
    Raises: UnsupportedVLLMError for one that is needed and gone.
    """
    for worker in worker_classes():
        for cls in worker.__mro__:
            if name in vars(cls):
                return cls
    if needed:
        raise UnsupportedVLLMError(
            f"vLLM {vllm_version()} has no worker method {name}; update "
            "vllm_sauce/plugin/compat.py"
        )
    return None


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


def resend_images(processor: Any, prompt: Any, request: Any = None) -> None:
    """Make the API side send the images of a refused request again next time.

    They are in the prompt if it was rendered before, else in the request made of it.

    Why: rendering has noted them as already sent to the engine, but a refused request
    never gets there, so the next request with the same image would find no data.
    Remove when: vLLM notes an image as sent only when its request is.
    """
    cache = getattr(processor.renderer, "mm_processor_cache", None)
    # 0.26 and 0.27 take no note back: it is taken from where they are kept.
    notes = getattr(cache, "_cache", {})
    invalidate = getattr(cache, "invalidate", lambda mm_hash: notes.pop(mm_hash, None))
    rendered = prompt.get("mm_hashes") if isinstance(prompt, Mapping) else None
    found = {mm_hash for hashes in (rendered or {}).values() for mm_hash in hashes}
    for feature in getattr(request, "mm_features", None) or ():
        found.add(feature.mm_hash or feature.identifier)
    for mm_hash in found:
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
    try:
        from vllm.multimodal.cache.base import MultiModalCache
    except ModuleNotFoundError:  # one module until 0.30
        from vllm.multimodal.cache import MultiModalCache

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
    elif getattr(runner, "uses_inputs_embeds", runner.supports_mm_inputs):
        # V2; until 0.28 only multimodal models use embeddings, and it does not say so.
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


def wrap_function(module: Any, name: str, around: Callable[..., Any]) -> None:
    """``wrap`` a module's function, also where other modules have imported it by name.

    Raises: UnsupportedVLLMError when vLLM has renamed the seam.
    """
    original = getattr(module, name, None)
    wrap(module, name, around)
    for loaded in list(sys.modules.values()):
        if getattr(loaded, "__name__", "").startswith("vllm.") and (
            vars(loaded).get(name) is original
        ):
            setattr(loaded, name, getattr(module, name))


def http_app_module() -> Any:
    """The module of ``build_app``, which makes every HTTP server's application.

    Why: ``--middleware`` would be outermost, before authentication. Remove when vLLM
    lets a plugin place middleware.
    """
    try:
        from vllm.entrypoints.launchers import app
    except ModuleNotFoundError:  # 0.26 to 0.28
        from vllm.entrypoints.openai import api_server as app
    return app


def add_innermost_middleware(app: Any, middleware: Callable[..., Any]) -> None:
    """Place ASGI middleware around an application's routes, inside all other.

    Why: ``add_middleware`` puts it outside the others, and not at all once vLLM has
    built their stack.
    """
    from starlette.middleware import Middleware

    app.user_middleware.append(Middleware(middleware))
    app.middleware_stack = app.build_middleware_stack()


def route_path(scope: Mapping[str, Any]) -> str | None:
    """Return the path, as declared, of the route that will answer a request.

    None when none will: the application answers 404 or 405.
    """
    from starlette.routing import Match

    for route in scope["app"].router.routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return str(getattr(route, "path", route))
    return None


def messages_carry() -> bool:
    """Say whether ``/v1/messages`` hands ``vllm_xargs`` on. Remove with vLLM 0.28."""
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest

    return "vllm_xargs" in AnthropicMessagesRequest.model_fields


def run_batch_module() -> Any:
    """The module of ``vllm run-batch``, which asks the routes' handlers directly."""
    try:
        from vllm.entrypoints.launchers import run_batch
    except ImportError:  # 0.26 to 0.28
        from vllm.entrypoints.openai import run_batch
    return run_batch


def wrap_batch_lines(around: Callable[..., Any]) -> None:
    """Wrap how ``vllm run-batch`` makes a request of a line of its file.

    Why: nothing after it sees the line.
    """
    line_cls = run_batch_module().BatchRequestInput
    original = line_cls.model_validate_json
    line_cls.model_validate_json = staticmethod(functools.partial(around, original))
