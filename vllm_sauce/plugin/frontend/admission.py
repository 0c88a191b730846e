# SPDX-License-Identifier: Apache-2.0
"""Request in, mask out: resolves what to forget and sets the cache identity."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_sauce.bundle import Bundle
from vllm_sauce.client import ForgetRequest, has_sauce_keys, parse_request
from vllm_sauce.concepts import is_vision
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import BundleMismatchError, InvalidRequestError, RequestError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.frontend.counters import count_admitted, count_refused
from vllm_sauce.plugin.frontend.promises import Promise, refuse_broken
from vllm_sauce.plugin.sites.encoder_batches import (
    refuse_embeddings,
    refuse_other_kinds,
    refuse_unseen,
)
from vllm_sauce.plugin.startup import settings
from vllm_sauce.unlearning.mask import (
    KEPT_MASKS,
    Mask,
    check_size,
    marked,
    refuse_forged_keys,
    refuse_weak,
    renamed,
    resolve_mask,
    salted,
    without_decoder,
)
from vllm_sauce.unlearning.merging import check_agreement

POOLING = (
    "sauce edits generation only; pooling requests are refused because they would be "
    "answered unedited"
)


def install() -> None:
    """Make every request pass admission, whatever entry point it came from."""
    compat.hook("all", "InputProcessor.__init__", _processor_init)
    compat.hook("all", "InputProcessor.process_inputs", _process_inputs)
    compat.hook("all", "AsyncLLM._add_streaming_input_request", _add_session)
    compat.hook("all", "BeamSearchOnlineMixin.beam_search", _beam_search)
    compat.hook("all", "BeamSearchOfflineMixin.beam_search", _beam_search)


@dataclass(frozen=True, slots=True, eq=False)
class Admission:
    """What a process needs to admit requests: catalogue, policy, limits.

    Opened at start, so that a bundle replaced on the disk later changes nothing: what
    is known of a mask stays so.
    """

    config: SauceConfig
    bundle: Bundle

    @classmethod
    def open(cls, config: SauceConfig, digest: str | None = None) -> Admission:
        """Read the bundle of a configuration; compare its digest where one is given.

        Raises: BundleError.
        """
        bundle = Bundle.load(config.bundle, weights=False)
        if digest is not None and bundle.digest != digest:
            raise BundleMismatchError(
                f"the bundle {config.bundle} changed while the engine started: wanted "
                f"{digest}, found {bundle.digest}; start again"
            )
        return cls(config, bundle)

    def resolve(self, extra_args: Mapping[str, Any] | None) -> Mask | None:
        """Return the mask of a request, None when there is nothing to forget.

        Raises: RequestError (a ValueError: HTTP 400).
        """
        return self.promise(extra_args).mask

    def promise(self, extra_args: Mapping[str, Any] | None) -> Promise:
        """Return the mask of a request, and what of it the client asked for.

        Raises: RequestError (a ValueError: HTTP 400).
        """
        request = parse_request(extra_args)
        return Promise(self._mask(request), () if request is None else request.forget)

    def _mask(self, request: ForgetRequest | None) -> Mask | None:
        catalogue, config = self.bundle.catalogue, self.config
        mask = resolve_mask(request, catalogue, self.bundle.digest, config)
        if mask is None:
            return None
        acts_of(self, mask)
        if config.require_decoder and (
            unread := without_decoder(mask.names(), catalogue)
        ):
            raise InvalidRequestError(
                f"{', '.join(unread)} can be forgotten in pictures only, and this "
                "server answers no question where that may not be enough "
                "(--sauce-require-decoder); name other concepts"
            )
        return mask

    def identify(self, request: Any, mask: Mask | None) -> None:
        """Give the request's KV blocks and images an identity of their mask.

        A decoder mask salts the first block and so the whole chain. One that needs
        pictures encoded of pixels, under itself, renames them, which keys the encoder
        cache and the blocks behind it.
        """
        features = request.mm_features or ()
        refuse_forged_keys(request.cache_salt, (f.identifier for f in features))
        if mask is None:
            return
        acts = acts_of(self, mask)
        if acts.in_decoder:
            request.cache_salt = salted(request.cache_salt, mask)
        if acts.spares_prompts:
            refuse_unwritten(request.sampling_params)
        if acts.in_tower:
            refuse_unseen(features)
        elif acts.on_pixels:
            refuse_embeddings(features)
        if acts.on_pixels:
            for feature in features:
                feature.identifier = renamed(feature.identifier, mask)


@dataclass(frozen=True, slots=True)
class Acts:
    """Where an admissible mask acts."""

    in_decoder: bool = False
    in_tower: bool = False
    on_pixels: bool = False
    """Whether pictures must be encoded under it, of pixels: it edits them in the tower,
    or prompts otherwise than pictures, which embeddings of words would pass for."""
    tells_turns_apart: bool = False
    """Whether it edits prompts and answers otherwise."""
    spares_prompts: bool = False
    """Whether a concept of it is edited in answers and not in prompts."""


@functools.lru_cache(maxsize=KEPT_MASKS)
def acts_of(admission: Admission, mask: Mask | None) -> Acts:
    """Return where a mask acts; refuse one that the limits or the policy do not allow.

    Raises: RequestError.
    """
    if mask is None:
        return Acts()
    names, catalogue = mask.names(), admission.bundle.catalogue
    check_size(names, catalogue, admission.config)
    refuse_weak(names, catalogue, admission.config)
    check_agreement(mask, catalogue)
    in_tower = [is_vision(site) for site in mask.sites(catalogue)]
    return Acts(
        in_decoder=not all(in_tower),
        in_tower=any(in_tower),
        on_pixels=any(in_tower) or mask.tells_pictures_apart(catalogue),
        tells_turns_apart=mask.tells_turns_apart(catalogue),
        spares_prompts=mask.spares_prompts(catalogue),
    )


def refuse_unwritten(params: Any) -> None:
    """Refuse what is read off a prompt alone, where answers alone are edited.

    Raises: InvalidRequestError.
    """
    # The first token of an answer, and what is known of a prompt's, come of the prompt.
    if params.max_tokens == 1 or params.prompt_logprobs is not None:
        asked = "prompt_logprobs" if params.max_tokens != 1 else "a single token"
        raise InvalidRequestError(
            "the concepts to forget are edited in answers and not in prompts, so "
            f"{asked} would be answered unedited; ask for two tokens or more (beam "
            "search and scoring ask for one), without prompt_logprobs"
        )


_opened = functools.cache(Admission.open)


def admission_for(vllm_config: Any) -> Admission | None:
    """Return the one admission of a process for an engine, None without sauce.

    Raises: ConfigError, BundleError.
    """
    config = settings.from_vllm_config(vllm_config)
    if config is None:
        return None
    return _opened(config, vllm_config.additional_config["sauce"].get("digest"))


def _processor_init(
    original: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> None:
    original(self, vllm_config, *args, **kwargs)
    if admission_of(self) is not None:
        self._sauce_modalities = compat.modalities(vllm_config)


def admission_of(processor: Any) -> Admission | None:
    """Return what an engine's ``InputProcessor`` admits with, None without sauce."""
    if not hasattr(processor, "_sauce_admission"):
        processor._sauce_admission = admission_for(processor.vllm_config)
    admission: Admission | None = processor._sauce_admission
    return admission


def _process_inputs(
    original: Callable[..., Any],
    self: Any,
    request_id: str,
    prompt: Any,
    params: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    admission = admission_of(self)
    request = None
    try:
        params, promise = _admit(admission, params)
        request = original(self, request_id, prompt, params, *args, **kwargs)
        if admission is not None:
            if promise.mask is not None:
                # So does the engine core, whose word is no client's fault to a server.
                refuse_other_kinds(request.mm_features or (), self._sauce_modalities)
            admission.identify(request, promise.mask)
            count_admitted(promise)
    except RequestError as error:
        compat.resend_images(self, prompt, request)
        count_refused(error)
        raise compat.as_client_error(error) from None
    return request


def _admit(admission: Admission | None, params: Any) -> tuple[Any, Promise]:
    """Return the parameters to go on with, and what the request forgets.

    Raises: RequestError.
    """
    extra_args = getattr(params, "extra_args", None)
    if admission is None:
        if has_sauce_keys(extra_args):
            raise InvalidRequestError(
                "the request asks to forget concepts, but this engine runs without "
                "sauce; start it with --plugin sauce"
            )
        return params, Promise(None)
    if not compat.is_sampling_params(params):
        raise InvalidRequestError(POOLING)
    promise = admission.promise(extra_args)
    mask = promise.mask
    refuse_broken(mask)
    # A plain request is marked, too: an engine knows one that went around admission.
    mark = {"mask": None if mask is None else mask.to_wire()}
    return compat.with_extra_args(params, marked(extra_args, mark)), promise


async def _add_session(
    original: Callable[..., Any],
    self: Any,
    request_id: str,
    input_stream: Any,
    sampling_params: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    stream = _one_mask(
        self.input_processor._sauce_admission, input_stream, sampling_params
    )
    return await original(self, request_id, stream, sampling_params, *args, **kwargs)


async def _one_mask(
    admission: Admission | None, chunks: AsyncIterable[Any], params: Any
) -> AsyncIterator[Any]:
    """Pass a session's chunks on; refuse one that forgets anything else.

    The session's blocks keep the salt of its first chunk, so another mask's would be
    cached under the wrong name.
    """
    async for chunk in chunks:
        other = chunk.sampling_params
        if admission is not None and other is not None:
            wanted, got = (admission.resolve(p.extra_args) for p in (params, other))
            if wanted != got:
                raise compat.as_client_error(
                    InvalidRequestError(
                        "all chunks of a streaming session forget the same concepts; "
                        "start another session for another mask"
                    )
                )
        yield chunk


def _beam_search(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    engine = self.llm_engine if hasattr(self, "llm_engine") else self.engine_client
    try:
        _refuse_beams(admission_of(engine.input_processor))
    except RequestError as error:
        count_refused(error)
        raise compat.as_client_error(error) from None
    return original(self, *args, **kwargs)


def _refuse_beams(admission: Admission | None) -> None:
    # A wish of its own a beam search cannot carry: what is mandatory is all there is.
    mask = None if admission is None else admission.resolve(None)
    if admission is not None and acts_of(admission, mask).tells_turns_apart:
        raise InvalidRequestError(
            "beam search asks for each token as a prompt of its own, and "
            f"{', '.join(admission.config.forget)}, which every request must forget "
            "here, is edited otherwise in prompts than in answers; ask without beam "
            "search"
        )
