# SPDX-License-Identifier: Apache-2.0
"""``vllm bench throughput`` and ``latency``: the engine is in this process."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from typing import Any

from vllm_sauce.client import KEY, forget
from vllm_sauce.concepts import Catalogue
from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.bench.masks import FLAG, Masks, add_flag, masks_of, where_asked
from vllm_sauce.plugin.frontend.admission import Admission
from vllm_sauce.plugin.startup import settings
from vllm_sauce.unlearning.mask import PREFIX, without_decoder

COMMANDS = ("throughput", "latency")


def install(command: str) -> None:
    """Add the flag to one of the commands, and have its requests ask."""
    place = f"bench {command}"
    compat.hook(place, "add_cli_args", _add_cli_args, imported=True)
    compat.hook(place, "main", _main, imported=True)


def _add_cli_args(original: Callable[..., Any], parser: Any) -> Any:
    result = original(parser)
    add_flag(parser)
    return result


@where_asked
def _main(original: Callable[..., Any], args: argparse.Namespace) -> Any:
    turns = Turns(*_masks(args))
    # Around admission: every way to ask an engine ends there.
    compat.hook("all", "InputProcessor.process_inputs", turns.process_inputs)
    result = original(args)
    if not turns.num_requests:
        raise ConfigError(f"{FLAG}: no request has been asked to forget anything")
    compat.logger(__name__).info(
        "sauce: %d requests, warm-up among them, were answered under %d different "
        "masks in turn",
        turns.num_requests,
        len(turns.mask_ids),
    )
    return result


def _masks(args: argparse.Namespace) -> tuple[Masks, Catalogue]:
    """Raises: ConfigError"""
    config = settings.from_vllm_config(args)
    if config is None:
        raise ConfigError(f"{FLAG} given without --plugin sauce; add --plugin sauce")
    backend = getattr(args, "backend", "vllm")
    if backend not in ("vllm", "vllm-chat"):
        raise ConfigError(
            f"{FLAG} wants --backend vllm or vllm-chat, got {backend}, which does not "
            "run the engine that forgets"
        )
    if getattr(args, "use_beam_search", False):
        raise ConfigError(
            f"{FLAG} with --use-beam-search would give each beam another mask; leave "
            "one of them out"
        )
    admission = Admission.open(config)
    masks = masks_of(args.sauce_bench_forget, admission, args.seed or 0)
    return masks, admission.bundle.catalogue


class Turns:
    """Gives requests their masks in turn, and sees what admission made of it."""

    def __init__(self, masks: Masks, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._next = itertools.cycle(masks)
        self.num_requests = 0
        self.mask_ids: set[str] = set()

    def process_inputs(
        self,
        original: Callable[..., Any],
        processor: Any,
        request_id: str,
        prompt: Any,
        params: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Ask for the next mask.

        Raises: ConfigError when it changes nothing of this request
        """
        names = next(self._next)
        params = compat.with_extra_args(
            params, {**(params.extra_args or {}), **forget(*names)}
        )
        request = original(processor, request_id, prompt, params, *args, **kwargs)
        keys = [request.cache_salt, *(f.identifier for f in request.mm_features or ())]
        # What is mandatory may put a mask there, too.
        unread = set(without_decoder(names, self._catalogue)) == set(names)
        if not any(key and key.startswith(PREFIX) for key in keys) or (
            unread and not request.mm_features
        ):
            raise ConfigError(
                f"{FLAG}: {', '.join(names)} would be forgotten in pictures only, and "
                "the benchmark's requests have none: take a dataset with pictures, or "
                "concepts that a decoder site edits"
            )
        self.num_requests += 1
        self.mask_ids.add(request.sampling_params.extra_args[KEY]["mask"]["mask_id"])
        return request
