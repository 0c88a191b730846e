# SPDX-License-Identifier: Apache-2.0
"""Which rows of a harvest are trained on, and which are kept for measuring."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.activations.shards import Role, Rows
from vllm_sauce.concepts import is_vision
from vllm_sauce.errors import ConfigError


@dataclass(frozen=True, slots=True)
class RowChoice:
    """Some of a site's rows."""

    roles: frozenset[Role] = frozenset(Role)
    """Kinds of tokens."""

    skip_first: bool = False
    """Leave out position 0: a decoder's first token is an attention sink, whose norm
    dwarfs all others."""

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
        if self.skip_first:
            chosen &= shard.position[start:stop] != 0
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


def skips_first(site: str) -> bool:
    """Return whether a site's position 0 is a sink; patch 0 of a picture is none."""
    return not is_vision(site)


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
