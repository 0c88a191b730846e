# SPDX-License-Identifier: Apache-2.0
"""The engine core's own look at every request, where an error ends that request alone.

Admission runs in an API process and the masks are read in a worker, where an error ends
the engine. Whatever the worker would have to refuse is refused here: a request without
admission's mark, a mask of another bundle, a picture that is none. What is let in bears
another mark, and a worker takes nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any
from weakref import WeakValueDictionary

from vllm_sauce.client import KEY, has_sauce_keys
from vllm_sauce.errors import InvalidRequestError, RequestError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.frontend.admission import (
    POOLING,
    Admission,
    acts_of,
    admission_for,
    refuse_unwritten,
)
from vllm_sauce.plugin.sites.encoder_batches import (
    refuse_embeddings,
    refuse_other_kinds,
    refuse_unseen,
)
from vllm_sauce.plugin.startup import features
from vllm_sauce.plugin.startup.ranks import CALL, LOOK
from vllm_sauce.plugin.startup.ranks import check as check_ranks
from vllm_sauce.unlearning.mask import (
    Checked,
    Mask,
    marked,
    mask_id_of,
)


def install() -> None:
    """Look at every request that comes to an engine core, whoever sent it."""
    compat.hook("all", "EngineCore._initialize_kv_caches", _initialize)
    compat.hook("all", "EngineCore.preprocess_add_request", _preprocess_add_request)
    for name in ("sleep", "wake_up"):
        compat.hook("all", f"EngineCore.{name}", _after_changes)
    compat.hook("all", "EngineCore.collective_rpc", _collective_rpc)
    compat.hook("all", "LLMEngine.add_request", _add_request)


def _initialize(
    original: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> Any:
    # In a process of its own the core's __init__ has begun when it loads plugins.
    self._sauce_admission = admission_for(vllm_config)
    self._sauce_sessions = WeakValueDictionary()
    result = original(self, vllm_config, *args, **kwargs)  # with the warm-up
    if self._sauce_admission is not None:
        self._sauce_modalities = compat.modalities(vllm_config)
        check_ranks(vllm_config, self.model_executor.collective_rpc(CALL))
        self._sauce_proven = True
    return result


_KNOWN = frozenset(
    {
        "check_health",
        "compute_weight_checksums",
        "get_model_inspection",
        "get_supported_tasks",
        "profile",
        "reload_weights",
    }
)
"""Worker methods that change no weights, or that ``lifecycle`` proves."""


def _collective_rpc(
    original: Callable[..., Any], self: Any, method: Any, *args: Any, **kwargs: Any
) -> Any:
    begun = getattr(self, "_sauce_proven", None) is not None
    # What vLLM calls before is proven with all else; CALL only asks.
    if self._sauce_admission is None or not begun or method == CALL:
        return original(self, method, *args, **kwargs)
    if method in features.FOREIGN:
        features.refuse_foreign(method)
    if isinstance(method, str) and method in _KNOWN:
        return _after_changes(original, self, method, *args, **kwargs)

    # A method of somebody's extension, or a function: it may do anything.
    def between_looks(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.model_executor.collective_rpc(LOOK)
        try:
            return original(self, *args, **kwargs)
        finally:
            self.model_executor.collective_rpc(LOOK)

    return _after_changes(between_looks, self, method, *args, **kwargs)


def _after_changes(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    """Ask, after what may take a proof back, whether the edit is proven."""
    if self._sauce_admission is None:
        return original(self, *args, **kwargs)
    # Whatever it is, and whether or not it fails: is the edit proven then?
    self._sauce_proven = False
    ranks = self.vllm_config.parallel_config.world_size
    try:
        result = original(self, *args, **kwargs)
    except Exception:
        # Of several ranks' answers vLLM leaves those behind a failure in their queues,
        # where another call would read them.
        _settle(self, ranks == 1 and _all_proven(self, ranks))
        raise
    if isinstance(result, Future):
        # It sleeps once what runs has ended; nothing masked is let in until then.
        result.add_done_callback(lambda _: _settle(self, _all_proven(self, ranks)))
    else:
        _settle(self, _all_proven(self, ranks))
    return result


def _settle(core: Any, proven: bool) -> None:
    """Note whether the edit is proven; if not, end what a worker could not take."""
    core._sauce_proven = proven
    # What waits until the engine wakes is proven then, or ended.
    if not (proven or core.model_executor.is_sleeping):
        compat.abort(core, lambda request: _masked(request.sampling_params.extra_args))


def _masked(extra_args: Mapping[str, Any] | None) -> bool:
    mark = (extra_args or {}).get(KEY)
    return isinstance(mark, Checked) and mark.mask is not None


def _all_proven(core: Any, ranks: int) -> bool:
    reports = core.model_executor.collective_rpc(CALL)
    return len(reports) == ranks and all(
        isinstance(one, Mapping) and one["proven"] for one in reports
    )


def _preprocess_add_request(
    original: Callable[..., Any], self: Any, request: Any
) -> Any:
    try:
        # After vLLM has put in the data of pictures that it kept from earlier requests.
        processed = original(self, request)
        _check(self, processed[0])
    except Exception as error:
        error.sauce_request_id = request.request_id  # type: ignore[attr-defined]
        if isinstance(error, RequestError):
            raise compat.as_client_error(error) from None
        raise
    return processed


def _check(core: Any, request: Any) -> None:
    params = request.sampling_params
    if core._sauce_admission is None:
        if has_sauce_keys(getattr(params, "extra_args", None)):
            raise InvalidRequestError(
                "a request asks to forget concepts, but its engine runs without sauce"
            )
        return
    mask = check(core._sauce_admission, request)
    if mask is not None:
        refuse_other_kinds(request.mm_features or (), core._sauce_modalities)
    if mask is not None and not core._sauce_proven:
        raise InvalidRequestError(
            "nothing can be forgotten now: the engine sleeps, its weights are not "
            "whole, or a call to its ranks failed, and the edit is not proven again; "
            "wake it, reload its weights if they were discarded, or start it again"
        )
    if acts_of(core._sauce_admission, mask).tells_turns_apart:
        if getattr(request, "resumable", False):
            raise InvalidRequestError(
                "these concepts edit prompts and answers otherwise, and in a session "
                "one becomes the other; send each turn as a request of its own"
            )
        compat.read_no_prefix(request)
    if getattr(request, "resumable", False):
        _refuse_other_session(core, request, mask)
    request.sampling_params = compat.with_extra_args(
        params, marked(params.extra_args, Checked(mask))
    )


def _refuse_other_session(core: Any, request: Any, mask: Mask | None) -> None:
    # vLLM joins it to a living request of its id, which keeps its own cache's salt.
    living = core._sauce_sessions.get(request.request_id)
    if living is None or living.is_finished():
        core._sauce_sessions[request.request_id] = request
    elif living.sampling_params.extra_args[KEY].mask != mask:
        raise InvalidRequestError(
            f"a session {request.request_id[:64]!r} is open that forgets other "
            "concepts; give this one another id, or end that one first"
        )


def check(admission: Admission, request: Any) -> Mask | None:
    """Return a request's mask; refuse one not admitted as this process would.

    Raises: RequestError.
    """
    if request.sampling_params is None:
        raise InvalidRequestError(POOLING)
    mask = _admitted(admission, request.sampling_params.extra_args)
    acts = acts_of(admission, mask)
    salted = mask if acts.in_decoder else None
    _check_key(request.cache_salt or "", salted, "cache_salt")
    features = request.mm_features or ()
    for feature in features:
        key = feature.identifier
        _check_key(key, mask if acts.on_pixels else None, "picture's identifier")
    if acts.spares_prompts:
        refuse_unwritten(request.sampling_params)
    if acts.in_tower:
        refuse_unseen(features)
    elif acts.on_pixels:
        refuse_embeddings(features)
    return mask


def _admitted(
    admission: Admission, extra_args: Mapping[str, Any] | None
) -> Mask | None:
    """Return the mask that admission has put into a request, None for a plain one.

    Raises: InvalidRequestError for a request without admission's mark, or with a mask
        of another bundle, or without the mandatory concepts
    """
    mark = (extra_args or {}).get(KEY)
    if not isinstance(mark, Mapping) or set(mark) != {"mask"}:
        raise InvalidRequestError(
            "a request reached the engine without passing sauce's admission; refusing "
            "to serve it unedited (every process that takes requests needs the plugin)"
        )
    mask = None
    if mark["mask"] is not None:
        mask = Mask.from_wire(mark["mask"], admission.bundle.digest)
    names = () if mask is None else mask.names()
    if missing := sorted(set(admission.config.forget) - set(names)):
        raise InvalidRequestError(
            f"a request reached the engine without the concepts that every one must "
            f"forget here: {', '.join(missing)}"
        )
    return mask


def _check_key(key: str, mask: Mask | None, what: str) -> None:
    if mask_id_of(key) != (None if mask is None else mask.mask_id):
        raise InvalidRequestError(
            f"a request reached the engine with a {what} that does not fit its mask"
        )


def _add_request(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    try:
        return original(self, *args, **kwargs)
    except Exception as error:
        # vLLM waits for the answer of what it has noted, for ever.
        if noted := getattr(error, "sauce_request_id", None):
            self.output_processor.abort_requests([noted], internal=True)
        raise
