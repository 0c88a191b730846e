# SPDX-License-Identifier: Apache-2.0
"""What is asked to see whether a concept is forgotten and everything else is kept.

For a concept c of a concepts.yaml, on examples of one split:

- UAg: its domain's naming question, and one of the example's own prompts, on examples
  with c.
- UAd: "is there a c?" on pictures with c.
- IRA: naming and yes/no questions about the other concepts of c's domain, on pictures
  without c.
- CRA: the same about other domains, half on pictures with c and half without. Where no
  other concept is labelled, examples without c must be answered as they were unedited.
- The worst other concept: every other concept is named on a few pictures with it and
  without c. Means over many concepts hide one that is lost.

Source: SAUCE (arXiv:2503.14530), as ``evaluation.metrics`` names them
"""

from __future__ import annotations

import enum
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from vllm_sauce.data.concepts_yaml import ConceptExamples, ConceptFile, Example
from vllm_sauce.data.samples import Picture
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.metrics import harmonic_mean


class Part(enum.Enum):
    """Which score a question counts for."""

    UAG = "UAg"
    UAD = "UAd"
    IRA = "IRA"
    CRA_SHOWN = "CRA, with the concept"
    CRA_OTHER = "CRA, without the concept"
    WATCHED = "another concept that must not be lost"


class Kind(enum.Enum):
    """How an answer is read."""

    NAME = "name"
    YES = "yes"
    NO = "no"
    KEEP = "keep"
    """As the unedited model answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question, and the answer that a model gives that knows everything."""

    part: Part
    kind: Kind
    prompt: str
    picture: Picture | None
    words: tuple[str, ...]
    """Right answers ("no" for UAD, which asks whether it is forgotten); empty for
    KEEP."""

    about: str = ""
    """The concept that it is about; empty for KEEP."""

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


def mentions(text: str, words: Sequence[str]) -> bool:
    """Say whether a text has one of the words, whole, in any case, plural or not."""
    return any(
        re.search(rf"(?<!\w){re.escape(word)}(s|es)?(?!\w)", text, re.IGNORECASE)
        for word in words
    )


def first_word(text: str) -> str:
    """Return the first word of an answer, without case."""
    found = re.search(r"\w+", text)
    return found[0].casefold() if found else ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One edit's scores; None where nothing could be asked."""

    UAg: float
    UAd: float | None
    IRA: float | None
    CRA: float
    watched: Mapping[str, float] = field(default_factory=dict)
    """How often each other concept is named right where it is."""

    @property
    def HM(self) -> float:
        """Harmonic mean of those that there are."""
        return harmonic_mean([s for s in self.values() if s is not None])

    @property
    def forgetting(self) -> float:
        """Harmonic mean of UAg and UAd."""
        return harmonic_mean([s for s in (self.UAg, self.UAd) if s is not None])

    def values(self) -> tuple[float, float | None, float | None, float]:
        """Return the four."""
        return self.UAg, self.UAd, self.IRA, self.CRA

    def loss(self, base: Outcome) -> float:
        """Return the larger loss of IRA and CRA against the unedited model."""
        pairs = ((base.IRA, self.IRA), (base.CRA, self.CRA))
        return max(
            before - after
            for before, after in pairs
            if before is not None and after is not None
        )

    def worst(self, base: Outcome) -> tuple[str, float]:
        """Return the concept that lost most against the unedited model, and how much.

        ("", 0) if nothing was lost.
        """
        lost = {name: base.watched[name] - kept for name, kept in self.watched.items()}
        name = max(lost, key=lost.__getitem__, default="")
        return (name, lost[name]) if lost.get(name, 0.0) > 0 else ("", 0.0)

    def to_json(self) -> dict[str, float | None]:
        """Return the scores rounded to four digits."""
        named = {"UAg": self.UAg, "UAd": self.UAd, "IRA": self.IRA, "CRA": self.CRA}
        return {n: None if s is None else round(s, 4) for n, s in named.items()} | {
            "HM": round(self.HM, 4)
        }


def outcome(items: Sequence[Item], right: Sequence[float]) -> Outcome:
    """Return the scores of one edit from how right each answer was, 0..1.

    Raises: ConfigError if what must be asked was not
    """
    forgot = [1 - r for r in _of(items, right, Part.UAG)]
    denied = _of(items, right, Part.UAD)
    halves = [
        score
        for part in (Part.CRA_SHOWN, Part.CRA_OTHER)
        if (score := _accuracy(items, right, part)) is not None
    ]
    if not forgot or not halves:
        raise ConfigError("a score without a single question")
    return Outcome(
        UAg=sum(forgot) / len(forgot),
        UAd=sum(denied) / len(denied) if denied else None,
        IRA=_accuracy(items, right, Part.IRA),
        CRA=sum(halves) / len(halves),
        watched=_watched(items, right),
    )


def _watched(items: Sequence[Item], right: Sequence[float]) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for item, value in zip(items, right, strict=True):
        if item.part is Part.WATCHED:
            found.setdefault(item.about, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _of(items: Sequence[Item], right: Sequence[float], part: Part) -> list[float]:
    return [r for item, r in zip(items, right, strict=True) if item.part is part]


def _accuracy(
    items: Sequence[Item], right: Sequence[float], part: Part
) -> float | None:
    """Return the mean of naming's and balanced yes/no's accuracy, each half."""
    by_kind: dict[Kind, list[float]] = {}
    for item, value in zip(items, right, strict=True):
        if item.part is part:
            by_kind.setdefault(item.kind, []).append(value)
    mean = {kind: sum(values) / len(values) for kind, values in by_kind.items()}
    yes_no = [mean[kind] for kind in (Kind.YES, Kind.NO) if kind in mean]
    shares = [mean[kind] for kind in (Kind.NAME, Kind.KEEP) if kind in mean]
    if yes_no:
        shares.append(sum(yes_no) / len(yes_no))
    return sum(shares) / len(shares) if shares else None


class Questionnaire:
    """Asks about the concepts of one file on the examples of one split."""

    def __init__(self, file: ConceptFile, split: str, seed: int = 0) -> None:
        self.file, self.split, self.seed = file, split, seed
        self.domains = file.domains()

    def items(
        self, name: str, positives: int, negatives: int, watched: int = 0
    ) -> list[Item]:
        """Return the questions that judge one concept's edits.

        ``positives`` and ``negatives``: examples with it and without it at most; of
        the latter half show another concept of its domain, where there are such. What
        else is in a picture is asked of as many examples with it as without: it is
        most of the questions, and the few about the concept itself are what is noisy.
        ``watched``: examples of every other concept at most.

        Raises: ConfigError if the split has no example of a kind
        """
        concept = self.file.concepts[name]
        rng = random.Random(f"{self.seed}:{name}")
        shown = self._draw(rng, concept.examples(True, self.split), positives)
        others = concept.examples(False, self.split)
        mates = [e for e in others if self._mates(e, concept)]
        rest = [e for e in others if not self._mates(e, concept)]
        absent = self._draw(rng, rest, max(negatives // 2, negatives - len(mates)))
        absent += self._draw(rng, mates, negatives - len(absent))
        if not shown or not absent:
            raise ConfigError(
                f"{self.file.path}: {name!r} has {len(shown)} examples with it and "
                f"{len(absent)} without it in the split {self.split!r}; give more"
            )
        found = [item for e in shown for item in self._target(rng, concept, e)]
        for example in shown[: len(absent)]:
            found += self._retain(rng, concept, example, Part.CRA_SHOWN)
        for example in absent:
            found += self._retain(rng, concept, example, Part.CRA_OTHER)
        if not any(item.part is Part.CRA_OTHER for item in found):
            found += [item for e in absent for item in _kept(e)]
        return found + self._watch(rng, concept, watched)

    def _watch(
        self, rng: random.Random, target: ConceptExamples, count: int
    ) -> list[Item]:
        """Have every other concept named on examples without the target.

        Few examples that show many concepts each: a picture costs more than a question.
        """
        examples = [
            example
            for example in target.examples(False, self.split)
            if example.picture is not None
        ]
        rng.shuffle(examples)
        items: list[Item] = []
        for _ in range(count):
            missing = {name for name in self.file.concepts if name != target.name}
            while missing:
                best = max(
                    examples, key=lambda e: len(missing & set(e.concepts)), default=None
                )
                found = missing & set(best.concepts) if best else set()
                if best is None or not found:
                    break
                examples.remove(best)
                missing -= found
                items += [
                    _naming(rng, Part.WATCHED, self.file.concepts[name], best)
                    for name in best.concepts
                    if name in found
                ]
        return items

    def _draw(
        self, rng: random.Random, examples: Sequence[Example], count: int
    ) -> list[Example]:
        return rng.sample(list(examples), min(max(count, 0), len(examples)))

    def _mates(self, example: Example, concept: ConceptExamples) -> bool:
        return any(
            other != concept.name and self.file.concepts[other].domain == concept.domain
            for other in example.concepts
        )

    def _target(
        self, rng: random.Random, concept: ConceptExamples, example: Example
    ) -> list[Item]:
        """Ask about the concept where it is."""
        name, words = concept.name, concept.answers
        prompts = [p for p in example.prompts if p not in concept.questions.name]
        items = []
        if prompts:
            # One of them: naming it counts as much, and so do other examples.
            own = _item(Part.UAG, Kind.NAME, rng.choice(prompts), example, words, name)
            items.append(replace(own, optional=True))
        if example.picture is not None:
            items.append(_naming(rng, Part.UAG, concept, example))
            # Neither yes nor no is no denial: what counts is the word "no".
            wordings = range(len(concept.questions.exists))
            for wording in rng.sample(wordings, min(2, len(wordings))):
                items.append(_exists(rng, Part.UAD, Kind.NO, concept, example, wording))
        return items

    def _retain(
        self, rng: random.Random, target: ConceptExamples, example: Example, part: Part
    ) -> list[Item]:
        """Ask about the other concepts of a picture, and about some that it lacks."""
        items: list[Item] = []
        if example.picture is None:
            return items
        for name in example.concepts:
            other = self.file.concepts[name]
            same = other.domain == target.domain
            if name == target.name or (same and part is Part.CRA_SHOWN):
                continue
            mine = Part.IRA if same else part
            items.append(_naming(rng, mine, other, example))
            items.append(_exists(rng, mine, Kind.YES, other, example))
            lacking = [
                n
                for n in self.domains[other.domain]
                if n != target.name and n not in example.concepts
            ]
            if lacking:
                missing = self.file.concepts[rng.choice(lacking)]
                items.append(_exists(rng, mine, Kind.NO, missing, example))
        return items


def _kept(example: Example) -> list[Item]:
    return [
        _item(Part.CRA_OTHER, Kind.KEEP, prompt, example, ())
        for prompt in example.prompts
    ]


def _item(
    part: Part,
    kind: Kind,
    prompt: str,
    example: Example,
    words: Sequence[str],
    about: str = "",
) -> Item:
    return Item(
        part=part,
        kind=kind,
        prompt=prompt,
        picture=example.picture,
        words=tuple(words),
        about=about,
    )


def _naming(
    rng: random.Random, part: Part, concept: ConceptExamples, example: Example
) -> Item:
    """Ask for the concept's name in one of its wordings."""
    prompt = rng.choice(concept.questions.name)
    return _item(part, Kind.NAME, prompt, example, concept.answers, concept.name)


def _exists(
    rng: random.Random,
    part: Part,
    kind: Kind,
    concept: ConceptExamples,
    example: Example,
    wording: int | None = None,
) -> Item:
    """Ask whether it is there, in this or in any wording."""
    questions = concept.questions
    word = questions.yes if kind is Kind.YES else questions.no
    if wording is None:
        wording = rng.randrange(len(questions.exists))
    prompt = questions.asks(concept.answers[0], wording)
    return _item(part, kind, prompt, example, (word,), concept.name)


def small_part(items: Sequence[Item], share: float, watched: bool = True) -> list[int]:
    """Return the numbers of a share of the items, the same share of every kind.

    At least one of each part and kind; the first ones, so larger shares hold smaller.
    ``watched``: whether other concepts are named, which takes pictures of their own.
    """
    groups: dict[tuple[Part, Kind], list[int]] = {}
    for number, item in enumerate(items):
        if item.part is Part.WATCHED and not watched:
            continue
        groups.setdefault((item.part, item.kind), []).append(number)
    return sorted(
        number
        for numbers in groups.values()
        for number in numbers[: max(1, round(share * len(numbers)))]
    )
