# SPDX-License-Identifier: Apache-2.0
"""What is asked of an engine, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_sauce.data.samples import Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One question under one candidate edit, or none."""

    prompt: str
    """The user's words; the model's chat template is put around them."""
    picture: Picture | None = None
    """Shown before the words."""
    candidates: tuple[str, ...] = ()
    """Names of the edits that act together; none for the model as it is."""
    strength: float = 1.0
    """Factor on the edits' change."""
    tokens: tuple[int, ...] = ()
    """First tokens of the answer whose log-probabilities are wanted."""
    max_tokens: int = 1
    """Tokens that are written."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What came back for one probe."""

    logprobs: dict[int, float]
    """As the answer's first token: of what was asked for, and of what was said."""
    said: tuple[int, ...]
    """The likeliest answer's tokens."""
    text: str
    """The likeliest answer, without outer blanks."""
