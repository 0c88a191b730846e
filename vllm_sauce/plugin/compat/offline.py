# SPDX-License-Identifier: Apache-2.0
"""vLLM without a server, and the files of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vllm_sauce.errors import UnsupportedVLLMError
from vllm_sauce.plugin.compat.version import vllm_version


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
            "vllm_sauce/plugin/compat/"
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
