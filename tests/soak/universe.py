# SPDX-License-Identifier: Apache-2.0
"""The finite set of requests that a soak draws from, and what an engine takes for each.

Few pictures and few questions, so that requests meet in the caches all the time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.plugin.support import LONG, Ask

PIXELS = {
    "p0": (56, 56, "RGB"),
    "p1": (56, 56, "RGB"),
    "p2": (120, 40, "RGB"),
    "p3": (33, 90, "RGB"),
    "p4": (57, 55, "L"),
    "p5": (200, 150, "RGBA"),
}
"""Name -> width, height and mode of a picture."""

EMBEDS = ("e0", "e1")
"""Pictures given as embeddings, which go around the vision tower and so the edit."""

PICTURES: tuple[tuple[str, ...], ...] = (
    (),
    *((name,) for name in PIXELS),
    ("p0", "p0"),
    ("p0", "p1"),
    ("p1", "p0"),
    ("p2", "p3", "p4"),
    ("p0", "p5", "p0"),
    ("e0",),
    ("e1",),
    ("e0", "e0"),
    ("e0", "p0"),
    ("p1", "e1"),
    ("p0", "e0", "p1"),
)
QUESTIONS = ("what is in the picture ?", LONG[:120].rpartition(" ")[0], LONG)
MASKS: tuple[tuple[tuple[str, ...], float], ...] = (
    ((), 1.0),
    (("seen",), 1.0),
    (("seen",), 2.5),
    (("read",), 1.0),
    (("read",), 0.5),
    (("both",), 1.0),
    (("both",), 2.0),
    (("seen", "read"), 1.5),
    (("read", "both"), 1.0),
)
SEEING = frozenset({"seen", "both"})
"""Concepts of the random bundle that are edited in the vision tower."""

NUM_TOKENS = 6
"""Tokens of the longest answer; a shorter one is its beginning."""

FORGED: dict[str, dict[str, Any]] = {
    "unknown concept": {"forget": ("seeen",)},
    "forged salt": {"prompt": {"cache_salt": "sauce:abc"}},
    "forged uuid": {"prompt": {"multi_modal_uuids": {"image": ["sauce:a:b"]}}},
}
"""Requests that admission must refuse, whatever the engine has cached."""


@dataclass(frozen=True, order=True)
class Request:
    """Pictures by name, a question, and what to forget."""

    pictures: tuple[str, ...]
    question: int
    forget: tuple[str, ...] = ()
    strength: float = 1.0

    @property
    def embeds(self) -> bool:
        """Whether some picture is given as embeddings."""
        return any(name in EMBEDS for name in self.pictures)

    @property
    def refused(self) -> bool:
        """Whether a picture would go around the edit that the mask asks for."""
        return self.embeds and bool(SEEING & set(self.forget))

    @property
    def key(self) -> str:
        """Name the request in files."""
        return json.dumps(dataclasses.astuple(self))

    @property
    def text(self) -> str:
        """The prompt as sauce-tiny's chat template writes it."""
        images = "<image>\n" * len(self.pictures)
        return f"USER: {images}{QUESTIONS[self.question]} ASSISTANT:"

    def params(self, max_tokens: int) -> Any:
        """Greedy sampling parameters that return log-probabilities."""
        return Ask(None, "", self.forget, self.strength, max_tokens).params()


REQUESTS = tuple(
    Request(pictures, question, *mask)
    for pictures, question, mask in product(PICTURES, range(len(QUESTIONS)), MASKS)
)

MANY_MASKS = tuple(
    Request(("p0",), 0, ("both",), round(0.5 + i / 20, 2)) for i in range(40)
)
"""More masks than any engine here has slots."""


@cache
def picture(name: str) -> Image.Image:
    """Return a picture of coloured blocks in its own size and mode."""
    width, height, mode = PIXELS[name]
    rng = np.random.default_rng(int(name[1:]))
    blocks = rng.integers(0, 256, (7, 7, 4), dtype=np.uint8)
    return Image.fromarray(blocks, "RGBA").resize((width, height), 0).convert(mode)


@cache
def embeds(name: str) -> torch.Tensor:
    """Return a picture's rows as the projector would hand them on: [49, 192]."""
    rng = torch.Generator().manual_seed(100 + int(name[1:]))
    return torch.randn(49, 192, generator=rng) * 0.5


def digest() -> str:
    """Return a hash of everything that the answers depend on, but for the engine."""
    taken = hashlib.sha256()
    for name in PIXELS:
        taken.update(picture(name).tobytes())
    for name in EMBEDS:
        taken.update(embeds(name).numpy().tobytes())
    taken.update(json.dumps(QUESTIONS).encode())
    return taken.hexdigest()[:16]
