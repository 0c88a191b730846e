# SPDX-License-Identifier: Apache-2.0
"""Request in, mask out: resolves what to forget and sets the cache identity."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vllm_sauce.bundle import Bundle
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import InvalidRequestError, RequestError
from vllm_sauce.plugin import compat, settings
from vllm_sauce.unlearning import Mask, parse_request, resolve_mask
from vllm_sauce.unlearning.cache_identity import refuse_forged_keys, renamed, salted
from vllm_sauce.unlearning.wire import carry, has_sauce_keys


def install() -> None:
    """Make every request pass admission, whatever entry point it came from."""
    compat.wrap(compat.input_processor_cls(), "process_inputs", _process_inputs)


class Admission:
    """What one API process needs to admit requests: catalogue, policy, limits."""

    def __init__(self, config: SauceConfig) -> None:
        self.config = config
        self.bundle = Bundle.load(config.bundle, weights=False)

    def resolve(self, extra_args: Mapping[str, Any] | None) -> Mask | None:
        """Return the mask of a request, None when there is nothing to forget.

        Raises: RequestError (a ValueError: HTTP 400).
        """
        return resolve_mask(
            parse_request(extra_args),
            self.bundle.catalogue,
            self.config.forget,
            self.bundle.digest,
            self.config.max_latents,
            self.config.max_concepts,
        )

    def identify(self, request: Any, mask: Mask | None) -> None:
        """Give the request's KV blocks and images an identity of their mask.

        A decoder mask salts the first block and so the whole chain; a vision mask
        renames the images, which keys the encoder cache and the blocks behind it.
        """
        features = request.mm_features or ()
        refuse_forged_keys(request.cache_salt, (f.identifier for f in features))
        if mask is None:
            return
        sites = mask.sites(self.bundle.catalogue)
        if any(site != "vision" for site in sites):
            request.cache_salt = salted(request.cache_salt, mask)
        if "vision" in sites:
            for feature in features:
                feature.identifier = renamed(feature.identifier, mask)


def admission_of(processor: Any) -> Admission | None:
    """Return what an engine's ``InputProcessor`` admits with, None without sauce."""
    config = settings.from_vllm_config(processor.vllm_config)
    if config is None:
        return None
    admission: Admission | None = getattr(processor, "_sauce_admission", None)
    if admission is None:
        admission = processor._sauce_admission = Admission(config)
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
    try:
        params, mask = _admit(admission, params)
        request = original(self, request_id, prompt, params, *args, **kwargs)
        if admission is not None:
            admission.identify(request, mask)
    except RequestError as error:
        compat.resend_images(self, prompt)
        raise compat.as_client_error(error) from None
    return request


def _admit(admission: Admission | None, params: Any) -> tuple[Any, Mask | None]:
    """Return the parameters to go on with and the request's mask.

    Raises: RequestError.
    """
    extra_args = getattr(params, "extra_args", None)
    if admission is None:
        if has_sauce_keys(extra_args):
            raise InvalidRequestError(
                "the request asks to forget concepts, but this engine runs without "
                "sauce; start it with --plugin sauce"
            )
        return params, None
    if not compat.is_sampling_params(params):
        raise InvalidRequestError(
            "sauce edits generation only; pooling requests are refused because they "
            "would be answered unedited"
        )
    mask = admission.resolve(extra_args)
    carried = carry(extra_args, None if mask is None else mask.to_wire())
    return compat.with_extra_args(params, carried or None), mask
