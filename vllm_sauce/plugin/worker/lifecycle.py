# SPDX-License-Identifier: Apache-2.0
"""Sleep, wake and new weights: proven again, or refused.

Sleep frees the device's memory, the op's tables included, and a reload may bring
weights that the bundle does not belong to. Until a new proof no masked request runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vllm_sauce.errors import BundleMismatchError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import features, settings
from vllm_sauce.plugin.worker import canary
from vllm_sauce.plugin.worker.injection import check_files
from vllm_sauce.plugin.worker.runtime import SauceRuntime, runtime_of

_PARTS = frozenset({"weights", "kv_cache"})
"""What sleeps and can be woken by itself, as vLLM tags it."""


def install() -> None:
    """Wrap what changes a worker's memory or weights after the start."""
    compat.hook_worker("sleep", _sleep)
    compat.hook_worker("wake_up", _wake_up)
    compat.hook_worker("reload_weights", _reload_weights)
    for name in features.FOREIGN:
        compat.hook_worker(name, partial(_refuse, name), needed=False)


def _runtime(worker: Any) -> SauceRuntime:
    runtime = runtime_of(worker.model_runner.model)
    assert runtime is not None
    return runtime


def _edits(worker: Any) -> bool:
    return settings.section_of(worker.vllm_config) is not None


def _refuse(
    name: str, original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    if _edits(self):
        features.refuse_foreign(name)
    return original(self, *args, **kwargs)


def _sleep(
    original: Callable[..., Any], self: Any, level: int = 1, *args: Any, **kwargs: Any
) -> Any:
    if _edits(self):
        runtime = _runtime(self)
        runtime.proven = False
        self._sauce_asleep = set(_PARTS)
        # Level 2 throws the weights away: waking brings memory back, not numbers.
        runtime.weights_lost |= level >= 2
    return original(self, level, *args, **kwargs)


def _wake_up(
    original: Callable[..., Any],
    self: Any,
    tags: list[str] | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    if not _edits(self):
        return original(self, tags, *args, **kwargs)
    # The proof that follows is one of all ranks together.
    with compat.together(stages=True):
        result = original(self, tags, *args, **kwargs)
        asleep: set[str] = getattr(self, "_sauce_asleep", set())
        self._sauce_asleep = asleep - (_PARTS if tags is None else set(tags))
    _prove_if_whole(self)
    return result


def _reload_weights(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    if not _edits(self):
        return original(self, *args, **kwargs)
    sources = (kwargs.get(name) for name in ("weights_iterator", "weights_path"))
    if args or any(source is not None for source in sources):
        _refuse("reload_weights from another place", original, self)
    runtime = _runtime(self)
    runtime.proven = False
    with compat.together(stages=True):  # as in waking
        result = original(self, *args, **kwargs)
        if check_files(runtime.bundle, self.vllm_config) != runtime.weights:
            raise BundleMismatchError(
                "the model's weights are not those that it was started with; start a "
                "server with the new ones"
            )
    runtime.weights_lost, runtime.weights_seen = False, None
    _prove_if_whole(self)
    return result


def _prove_if_whole(worker: Any) -> None:
    """Run the canary once memory and weights are all there; until then nothing runs."""
    if getattr(worker, "_sauce_asleep", None) or _runtime(worker).weights_lost:
        return
    canary.prove(worker.model_runner)
