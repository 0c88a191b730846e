# SPDX-License-Identifier: Apache-2.0
"""A question about a picture or a text, and what a right answer to it is."""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from vllm_sauce.data.samples import Picture


class Part(enum.Enum):
    """Which score a question counts for; ``metrics`` says what they are."""

    UAG = "UAg"
    UAD = "UAd"
    IRA = "IRA"
    CRA_SHOWN = "CRA, with the concept"
    CRA_OTHER = "CRA, without the concept"
    WATCHED = "another concept that must not be lost"


class Kind(enum.Enum):
    """What a right answer is."""

    NAME = "name"
    """One that has one of the words."""
    YES = "yes"
    """One that begins with the word, which says that something is there."""
    NO = "no"
    """One that begins with the word, which says that it is not."""
    KEEP = "keep"
    """What the unedited model says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question, and the answer that a model gives that knows everything."""

    prompt: str
    """The user's words; the model's chat template is put around them."""

    picture: Picture | None = None
    """Shown before the words."""

    kind: Kind = Kind.KEEP

    words: tuple[str, ...] = ()
    """Right answers ("no" for UAD, which asks whether it is forgotten); empty for
    KEEP."""

    rivals: tuple[str, ...] = ()
    """Other answers that one may give; empty if that is anything else."""

    about: str = ""
    """The concept that it is about; empty for KEEP."""

    shown: tuple[str, ...] = ()
    """All concepts that the picture or text has."""

    part: Part | None = None
    """None if it counts for no score."""

    optional: bool = False
    """Counts only if the unedited model gives the right answer: a picture's own prompt
    may be about something else in it."""

    def right(self, text: str, unedited: str) -> bool:
        """Say whether a generated answer is the right one."""
        if self.kind is Kind.KEEP:
            return text.strip().casefold() == unedited.strip().casefold()
        if self.kind is Kind.NAME:
            return mentions(text, self.words)
        return first_word(text) == first_word(self.words[0])


def malformed(text: str, unedited: str, *, goes_on: bool = False) -> bool:
    """Say whether an answer is spoilt, whatever it says.

    It is if it says nothing, repeats itself where the unedited one does not (a word
    twice on end, or up to four words thrice), or ``goes_on`` where that one ended.
    """
    if goes_on or not re.search(r"\w", text):
        return bool(re.search(r"\w", unedited))
    return _repeats(text) and not _repeats(unedited)


def _repeats(text: str) -> bool:
    words = re.findall(r"\w+", text.casefold())
    return any(
        words[at : at + size] * (times - 1) == words[at + size : at + size * times]
        for size, times in ((1, 2), (2, 3), (3, 3), (4, 3))
        for at in range(len(words) - size * times + 1)
    )


PLURALS = ("", "s", "es")
"""Endings with which a word is still that word."""


def word_pattern(words: Sequence[str]) -> re.Pattern[str]:
    """Return what matches one of the words, whole, in any case, plural or not."""
    choices = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    endings = "|".join(PLURALS)
    return re.compile(rf"(?<!\w)(?:{choices})(?:{endings})(?!\w)", re.IGNORECASE)


def mentions(text: str, words: Sequence[str]) -> bool:
    """Say whether a text has one of the words, as ``word_pattern`` matches them."""
    return bool(words) and word_pattern(words).search(text) is not None


def first_word(text: str) -> str:
    """Return the first word of an answer, without case."""
    found = re.search(r"\w+", text)
    return found[0].casefold() if found else ""
