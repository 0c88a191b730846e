# SPDX-License-Identifier: Apache-2.0
"""Which masks a benchmark's requests ask for: one for all, or many in turn."""

from __future__ import annotations

import argparse
import functools
import math
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_sauce.client import forget
from vllm_sauce.concepts import Catalogue
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import ConfigError, RequestError, SauceError
from vllm_sauce.plugin.frontend.admission import Admission
from vllm_sauce.plugin.startup import flags
from vllm_sauce.unlearning.mask import without_decoder

FLAG = "--sauce-bench-forget"
_RANDOM = "random:"

Masks = tuple[tuple[str, ...], ...]
"""For each mask the names of its concepts."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the flag says: these concepts, or so many masks of any."""

    names: tuple[str, ...] = ()
    num_masks: int = 0

    @classmethod
    def parse(cls, text: str) -> Wish:
        """Read the flag's value. Raises: argparse.ArgumentTypeError"""
        if text.startswith(_RANDOM):
            number = text.removeprefix(_RANDOM)
            if not (number.isascii() and number.isdigit()) or int(number) < 1:
                raise argparse.ArgumentTypeError(
                    f"random:N wants a number of masks, 1 or more, got {number!r}"
                )
            return cls(num_masks=int(number))
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        if not names:
            raise argparse.ArgumentTypeError(
                f"wanted NAME,NAME or random:N, got {text!r}"
            )
        return cls(names)


def add_flag(parser: Any) -> None:
    """Add the flag to a benchmark's parser."""
    flags.group_of(parser).add_argument(
        FLAG,
        type=Wish.parse,
        metavar="NAME[,NAME]|random:N",
        help="Concepts that the benchmark's requests ask to forget, as clients do: "
        "these in every request, or N different masks in turn, drawn by --seed. "
        "(--sauce-forget is the server's: forgotten whatever is asked.)",
    )


def masks_of(wish: Wish, admission: Admission, seed: int) -> Masks:
    """Return the masks that requests ask for in turn; all would be admitted.

    Raises: ConfigError, UnknownConceptError, TooManyConceptsError and what else
        admission refuses
    """
    if wish.names:
        masks: Masks = (wish.names,)
    else:
        catalogue, config = admission.bundle.catalogue, admission.config
        masks = draw(may_be_asked(catalogue, config), wish.num_masks, seed)
    for names in masks:
        try:
            admission.resolve(forget(*names))
        except RequestError as error:
            raise ConfigError(f"{FLAG}: {error}") from error
    return masks


def may_be_asked(catalogue: Catalogue, config: SauceConfig) -> tuple[str, ...]:
    """Return the concepts that masks are drawn from.

    Not what is refused, nor what is forgotten anyway. Those that a decoder site edits,
    where there are any: the others change nothing in a text.
    """
    left_out = set(catalogue.weak()) - set(config.allow_weak) | set(config.forget)
    names = [name for name in catalogue.names() if name not in left_out]
    pictures_only = set(without_decoder(names, catalogue))
    read = tuple(name for name in names if name not in pictures_only)
    return read or (() if config.require_decoder else tuple(names))


def draw(names: Sequence[str], num_masks: int, seed: int) -> Masks:
    """Return so many different masks, all of as few concepts as will do.

    Raises: ConfigError when there are not so many
    """
    sizes = range(1, len(names) + 1)
    counts = {size: math.comb(len(names), size) for size in sizes}
    enough = [size for size, count in counts.items() if count >= num_masks]
    if not enough:
        most = max(counts.values(), default=0)
        raise ConfigError(
            f"{FLAG} random:{num_masks}: of the {len(names)} concepts that a request "
            f"may ask for at most {most} masks of one size can be made; give random:N "
            "with N up to that"
        )
    rng, found = random.Random(seed), dict[tuple[str, ...], None]()
    while len(found) < num_masks:
        found[tuple(sorted(rng.sample(names, enough[0])))] = None
    return tuple(found)


def where_asked(run: Callable[..., Any]) -> Callable[..., Any]:
    """Have what is around a benchmark's ``main`` run only where the flag is given.

    An error of ours ends the benchmark with its message alone.
    """

    @functools.wraps(run)
    def main(original: Callable[..., Any], args: argparse.Namespace) -> Any:
        if args.sauce_bench_forget is None:
            return original(args)
        try:
            return run(original, args)
        except SauceError as error:
            sys.exit(f"vllm {' '.join(sys.argv[1:3])}: error: {error}")

    return main
