# SPDX-License-Identifier: Apache-2.0
"""Which rows of a harvest are trained on, and which are kept for measuring."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from vllm_sauce.activations.shards import Role, Rows
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.concepts import is_vision
from vllm_sauce.errors import ConfigError

LONGEST_TEMPLATE: Final = 1024
"""Tokens."""


@dataclass(frozen=True, slots=True)
class RowChoice:
    """Some of a site's rows."""

    roles: frozenset[Role] = frozenset(Role)
    """Kinds of tokens."""

    skip: int = 0
    """Leave out this many positions of each sample, see ``alike``."""

    held_out: Tensor | None = None
    """Numbers of the samples kept for measuring, [n] int32."""

    of_held_out: bool = False
    """Take the held-out samples instead of the others."""

    def __post_init__(self) -> None:
        if not self.roles:
            raise ConfigError("roles must name at least one kind of token, got none")

    def mask(self, shard: Rows, start: int, stop: int) -> Tensor:
        """Return which rows of a shard's stretch are chosen. Shape [stop - start]"""
        chosen = torch.ones(stop - start, dtype=torch.bool)
        if len(self.roles) < len(Role):
            wanted = torch.tensor(sorted(self.roles), dtype=torch.uint8)
            chosen &= torch.isin(shard.role[start:stop], wanted)
        if self.skip:
            chosen &= shard.position[start:stop] >= self.skip
        if self.held_out is not None:
            held_out = torch.isin(shard.sample[start:stop], self.held_out)
            chosen &= held_out == self.of_held_out
        return chosen


def parse_roles(names: Sequence[str]) -> frozenset[Role]:
    """Return the roles of these names, all if there are none. Raises: ConfigError"""
    known = {role.name.lower(): role for role in Role}
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"a role is one of {', '.join(known)}, got {unknown[0]!r}")
    return frozenset(known[name] for name in names) or frozenset(Role)


def sink(site: str) -> int:
    """Return how many positions of a site's samples no edit acts on.

    Of a decoder the first, an attention sink whose norm dwarfs all others; patches of
    pictures are no sinks.
    """
    return 0 if is_vision(site) else 1


def alike(store: ActivationStore) -> int:
    """Return how many positions of a site's samples say nothing of them.

    The sink, and what the template writes before the first word of anybody's: the same
    tokens in every sample, so the same activations.
    """
    if is_vision(store.site):
        return 0
    sample, position, role = store.labels()
    near = (position < LONGEST_TEMPLATE) & (role != Role.GENERATED)
    at = position[near].long()
    # What is no text is like nothing else.
    token = torch.where(role == Role.TEXT, store.tokens(), -1 - sample)[near]
    least, most = (
        torch.zeros(LONGEST_TEMPLATE, dtype=token.dtype).scatter_reduce(
            0, at, token, reduce, include_self=False
        )
        for reduce in ("amin", "amax")
    )
    everywhere = at.bincount(minlength=LONGEST_TEMPLATE) == len(sample.unique())
    same = everywhere & (least == most) & (least >= 0)
    found = int(same.long().cumprod(0).sum())
    # Where nothing else is there, as of a single prompt, only the sink goes.
    return found if 0 < found <= int(position.max()) else sink(store.site)


def held_out_samples(
    samples: Sequence[dict[str, Any]], share: float, seed: int
) -> Tensor:
    """Return the numbers of samples to keep for measuring, pictures undivided.

    A sample is drawn by its picture, or its prompt if it has none, so no picture is
    both trained on and measured on, and more samples change nothing for these.

    Shapes: -> [n] int32
    """
    if not 0 <= share < 1:
        raise ConfigError(f"the held-out share must be in [0, 1), got {share}")
    numbers = []
    for number, sample in enumerate(samples):
        content = f"{seed} {sample.get('picture') or sample.get('prompt')}"
        digest = hashlib.sha256(content.encode()).digest()
        if int.from_bytes(digest[:8], "big") < share * 2**64:
            numbers.append(number)
    return torch.tensor(numbers, dtype=torch.int32)
