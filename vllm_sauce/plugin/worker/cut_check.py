# SPDX-License-Identifier: Apache-2.0
"""Proof that all of a picture passes the vision sites, whatever the model.

Cut there, two pictures of one size must become equal, bit for bit: what still differs
has gone around.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.worker.runtime import SauceRuntime

_CONSTANT = 0.5


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a model's encoder takes it."""

    model: Any
    inputs: Mapping[str, Any]

    def embedding(self) -> Tensor:
        """Return what the language model gets of it. Shapes: -> [num_tokens, width]"""
        found = self.model.embed_multimodal(**self.inputs)
        parts = [found] if isinstance(found, Tensor) else list(found)
        return torch.cat([part.flatten(0, -2) for part in parts]).float()


def prove_cut(runner: Any, runtime: SauceRuntime) -> tuple[Picture, Tensor]:
    """Compare two pictures with the model cut at its vision sites.

    Returns one of them and its embedding, uncut.

    Raises: CanaryError with the share of elements that go around
    """
    first, second = _pictures(runner)
    before, other = first.embedding(), second.embedding()
    with compat.together():
        _check_pictures(before, other)
    for site in runtime.vision.values():
        site.constant = _CONSTANT
    try:
        one, other = first.embedding(), second.embedding()
    finally:
        for site in runtime.vision.values():
            site.constant = None
    around = float((one != other).float().mean())
    with compat.together():
        if around > 0:
            raise CanaryError(
                f"{around:.0%} of the numbers that the language model gets of a "
                f"picture go around {', '.join(sorted(runtime.vision))} of "
                f"{type(runner.model).__name__}: an edit there would not hold; edit "
                "decoder layers instead"
            )
    return first, before


def _check_pictures(one: Tensor, other: Tensor) -> None:
    if not bool(one.isfinite().all()):
        raise CanaryError(
            "the model makes of a picture of noise what is not a number, so nothing "
            "can be proven of the vision site; serve it with another --dtype"
        )
    if torch.equal(one, other):
        raise CanaryError(
            "two pictures of noise have the same embedding, so nothing can be proven "
            "of the vision site; are the model's weights whole?"
        )


def _pictures(runner: Any) -> list[Picture]:
    inputs = compat.dummy_picture(runner.vllm_config, next(runner.model.parameters()))
    rng = torch.Generator().manual_seed(0)
    return [
        Picture(runner.model, {k: _noise(k, v, rng) for k, v in inputs.items()})
        for _ in range(2)
    ]


def _noise(name: str, value: Any, rng: torch.Generator) -> Any:
    """Return noise in the place of pixels, and all else as it is."""
    if isinstance(value, list | tuple):
        return type(value)(_noise(name, part, rng) for part in value)
    if not name.startswith("pixel_values"):
        return value
    if value.is_floating_point():
        return torch.randn(value.shape, generator=rng).to(value)
    # Pixels that the model itself scales.
    return torch.randint(256, value.shape, generator=rng).to(value)
