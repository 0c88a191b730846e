# SPDX-License-Identifier: Apache-2.0
"""concepts.yaml: concepts, their examples, and how calibration asks for them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vllm_sauce.concepts.catalogue import check_concept_text
from vllm_sauce.data.example_sources import RawExample, read_source
from vllm_sauce.data.located_yaml import line_of
from vllm_sauce.data.pictures import decode_picture
from vllm_sauce.data.samples import Picture, Sample, samples_of
from vllm_sauce.data.schema import (
    SPLITS,
    Questions,
    Source,
    read_yaml,
)
from vllm_sauce.data.splits import assign_splits
from vllm_sauce.errors import ActivationsError, ConfigError, PictureError, warn

__all__ = ["SPLITS", "ConceptExamples", "ConceptFile", "Example", "Questions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One picture, or one text, whatever files it is in."""

    key: str
    """Where it was first met."""
    digest: str
    """SHA-256 of the picture's bytes and the words of its own."""
    picture: Picture | None
    prompts: tuple[str, ...]
    """What is asked about it; each makes a sample."""
    concepts: tuple[str, ...]
    """Concepts it has, in the file's order."""
    split: str
    """One of ``SPLITS``."""

    def samples(self) -> tuple[Sample, ...]:
        """Return what a model is shown: the picture with each prompt."""
        return samples_of(self.key, self.prompts, self.picture, self.concepts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConceptExamples:
    """One concept: how it is called and asked for, and its examples."""

    name: str
    domain: str
    answers: tuple[str, ...]
    """Words that the model says for it."""
    questions: Questions
    positive: tuple[Example, ...] = field(repr=False)
    negative: tuple[Example, ...] = field(repr=False)

    def examples(self, present: bool, split: str | None = None) -> list[Example]:
        """Return its examples with or without the concept, of one split or all.

        Raises: ConfigError
        """
        return _of_split(self.positive if present else self.negative, split)


@dataclass(frozen=True, slots=True)
class ConceptFile:
    """A concepts.yaml that was read, its examples found and split."""

    path: Path
    concepts: Mapping[str, ConceptExamples]
    """By name, in the file's order."""
    examples: tuple[Example, ...] = field(repr=False)
    """Each once, in the order in which the file leads to them."""
    failed: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Key of each example that cannot be shown, and why; it is left out of all else."""

    @classmethod
    def read(cls, path: str | Path) -> ConceptFile:
        """Read the file and find every example; reads each picture once.

        A picture or text that is there but cannot be shown is left out, with a warning.

        Raises: ConfigError naming the file, the line, the concept and what was wanted;
            ActivationsError for a picture that is not there
        """
        file = _Reader(Path(path)).read()
        if file.failed:
            key, reason = next(iter(file.failed.items()))
            warn(
                f"{path}: {len(file.failed)} examples cannot be shown and are left "
                f"out; the first is {key}: {reason}"
            )
        return file

    def samples(self, split: str | None = None) -> list[Sample]:
        """Return all samples of one split or all, each key once. Raises: ConfigError"""
        chosen = _of_split(self.examples, split)
        return [sample for example in chosen for sample in example.samples()]

    def domains(self) -> dict[str, tuple[str, ...]]:
        """Return the names of each domain's concepts, in the file's order."""
        grouped: dict[str, list[str]] = {}
        for concept in self.concepts.values():
            grouped.setdefault(concept.domain, []).append(concept.name)
        return {domain: tuple(names) for domain, names in grouped.items()}

    def questions(self, domain: str) -> Questions:
        """Return how a domain's concepts are asked for. Raises: ConfigError"""
        for concept in self.concepts.values():
            if concept.domain == domain:
                return concept.questions
        raise ConfigError(
            f"{self.path} has the domains {', '.join(self.domains())}, not {domain!r}"
        )


def _of_split(examples: Sequence[Example], split: str | None) -> list[Example]:
    if split is not None and split not in SPLITS:
        raise ConfigError(f"a split is one of {', '.join(SPLITS)}, got {split!r}")
    return [example for example in examples if split in (None, example.split)]


@dataclass(slots=True)
class _Found:
    """An example while files are being read."""

    raw: RawExample
    content: str
    """Digest of the picture, or of the words if there is none."""
    present: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    """Concepts whose ``negative`` holds it."""
    in_table: bool = False


class _Reader:
    """Reads one file; errors say where in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file, self.root = read_yaml(path)
        default = self.file.defaults.domain
        entries = self.file.concepts.items()
        self.domains = {name: entry.domain or default for name, entry in entries}
        self.found: dict[str, _Found] = {}
        self.failed: dict[str, str] = {}
        self._grouped: list[tuple[str, str]] = []
        """Contents, and the groups that rows with them name."""
        self._decoded: set[str] = set()
        """Digests of pictures that can be shown."""

    def read(self) -> ConceptFile:
        """Return the file with its examples."""
        self._check_names()
        self._read_tables()
        for name, entry in self.file.concepts.items():
            self._read_sources(name, "positive", entry.positive)
            self._read_sources(name, "negative", entry.negative)
        self._check_contradictions()
        signed = {name: self._signed(name) for name in self.file.concepts}
        self._check_there(signed)
        examples = self._examples()
        concepts = {n: self._concept(n, examples, *signed[n]) for n in signed}
        used = {e.digest for c in concepts.values() for e in (*c.positive, *c.negative)}
        kept = tuple(e for e in examples.values() if e.digest in used)
        return ConceptFile(self.path, concepts, kept, self.failed)

    def _check_names(self) -> None:
        for name, domain in self.domains.items():
            for what, text in (("name", name), ("domain", domain)):
                try:
                    check_concept_text(what, text)
                except ConfigError as error:
                    raise self._error(("concepts", name), str(error)) from error
        domains = set(self.domains.values())
        for domain in self.file.questions:
            if domain not in domains | {"default"}:
                raise self._error(
                    ("questions", domain),
                    f"no concept has the domain {domain!r}; there are "
                    f"{', '.join(sorted(domains))}, and 'default' for all others",
                )

    def _read_tables(self) -> None:
        known = self.file.concepts
        for number, table in enumerate(self.file.pictures or ()):
            place = ("pictures", number)
            for digest, found in self._open(table, place):
                found.in_table = True
                found.present |= {name for name in found.raw.concepts if name in known}
                before = self.found.get(digest, found)
                if before.present != found.present:
                    raise self._error(
                        place,
                        f"{before.raw.key} and {found.raw.key} are the same, but one "
                        f"is labelled {sorted(before.present)} and one "
                        f"{sorted(found.present)}",
                    )
                self.found[digest] = found

    def _read_sources(
        self, name: str, sign: str, sources: Sequence[Source] | None
    ) -> None:
        for number, source in enumerate(sources or ()):
            place = ("concepts", name, sign, number)
            for digest, new in self._open(source, place):
                found = self.found.setdefault(digest, new)
                (found.present if sign == "positive" else found.absent).add(name)

    def _open(
        self, source: Source, place: Sequence[str | int]
    ) -> Iterator[tuple[str, _Found]]:
        """Yield a source's examples, each with the digest of picture and words."""
        try:
            for raw in read_source(source, self.path.parent):
                try:
                    shown = self._shown(raw)
                except PictureError as error:
                    self.failed[raw.key] = str(error)
                    continue
                words = hashlib.sha256((raw.words or "").encode()).hexdigest()
                if raw.group is not None:
                    self._grouped.append((shown or words, raw.group))
                yield f"{shown}:{words}", _Found(raw, shown or words)
        except (ConfigError, ActivationsError) as error:
            raise self._error(place, str(error), type(error)) from error
        except ImportError as error:
            raise self._error(
                place, f"this table needs {error.name}: pip install vllm-sauce[train]"
            ) from error

    def _shown(self, raw: RawExample) -> str | None:
        """Return the digest of an example's picture; all that is used can be decoded.

        Stages that come hours later could not leave it out: others were counted on.

        Raises: PictureError, ActivationsError
        """
        if raw.problem:
            raise PictureError(raw.problem)
        if raw.picture is None:
            return None
        content = raw.picture.read()
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self._decoded:
            decode_picture(content, raw.picture.name)
            self._decoded.add(digest)
        return digest

    def _check_contradictions(self) -> None:
        for found in self.found.values():
            for name in sorted(found.present & found.absent):
                raise self._error(
                    ("concepts", name),
                    f"{found.raw.key} is both a positive and a negative example",
                )

    def _examples(self) -> dict[str, Example]:
        """Return what was found by digest, with splits and prompts."""
        labels: dict[str, set[str]] = {}
        units = self._units()
        for found in self.found.values():
            mine = labels.setdefault(units[found.content], set())
            mine |= found.present | {f"not {name}" for name in found.absent}
        splits = assign_splits(labels, self.file.splits.model_dump())
        times: Counter[str] = Counter()
        examples = {}
        for digest, found in self.found.items():
            # A table that is read for several columns has several examples in a row.
            key = found.raw.key
            times[key] += 1
            examples[digest] = Example(
                key=key if times[key] == 1 else f"{key}+{times[key]}",
                digest=hashlib.sha256(digest.encode()).hexdigest(),
                picture=found.raw.picture,
                prompts=self._prompts(found),
                concepts=tuple(n for n in self.file.concepts if n in found.present),
                split=splits[units[found.content]],
            )
        return examples

    def _units(self) -> dict[str, str]:
        """Return what keeps each content in one split with others: its group, if any.

        Contents that are in several groups join these.
        """
        joined: dict[str, str] = {}

        def first(one: str) -> str:
            while (other := joined.get(one, one)) != one:
                one = other
            return one

        for content, group in self._grouped:
            ends = sorted({first(content), first(f"group {group}")})
            joined |= dict.fromkeys(ends, ends[0])
        return {found.content: first(found.content) for found in self.found.values()}

    def _prompts(self, found: _Found) -> tuple[str, ...]:
        """Return its own words, or all prompts of the concepts that name it."""
        if found.raw.words is not None:
            return (found.raw.words,)
        names = [n for n in self.file.concepts if n in found.present | found.absent]
        default = self.file.defaults.prompts
        asked = [self.file.concepts[n].prompts or default for n in names] or [default]
        return tuple(dict.fromkeys(prompt for prompts in asked for prompt in prompts))

    def _signed(self, name: str) -> tuple[list[str], list[str]]:
        """Return the digests of a concept's positive and negative examples.

        Negatives by default are other concepts' examples, of the same kind.
        """
        positive = [d for d, found in self.found.items() if name in found.present]
        if self.file.concepts[name].negative is not None:
            return positive, [d for d, f in self.found.items() if name in f.absent]
        pictures = {self.found[digest].raw.picture is None for digest in positive}
        return positive, [
            digest
            for digest, found in self.found.items()
            if name not in found.present
            and (found.present or found.in_table)
            and (found.raw.picture is None) in pictures
        ]

    def _concept(
        self,
        name: str,
        examples: Mapping[str, Example],
        positive: Sequence[str],
        negative: Sequence[str],
    ) -> ConceptExamples:
        for what, digests in (("positive", positive), ("negative", negative)):
            self._check_count(name, what, [examples[d].split for d in digests])
        default = self.file.questions.get("default", Questions())
        return ConceptExamples(
            name=name,
            domain=self.domains[name],
            answers=tuple(self.file.concepts[name].answer or (name,)),
            questions=self.file.questions.get(self.domains[name], default),
            positive=tuple(examples[digest] for digest in positive),
            negative=tuple(examples[digest] for digest in negative),
        )

    def _check_there(self, signed: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Refuse concepts without any example with, or without, them."""
        table = "; no row of pictures names it" if self.file.pictures else ""
        no_positive = f"no positive example{table}; give positive"
        no_negative = "no negative example: no other concept has any; give negative"
        for sign, message in enumerate((no_positive, no_negative)):
            for name, examples in signed.items():
                if not examples[sign]:
                    raise self._error(("concepts", name), message)

    def _check_count(self, name: str, what: str, splits: Sequence[str]) -> None:
        for split, share in self.file.splits.model_dump().items():
            count = splits.count(split)
            if share and count < self.file.minimum:
                raise self._error(
                    ("concepts", name, what),
                    f"{len(splits)} {what} examples give {count} for {split}, wanted "
                    f"{self.file.minimum}; add examples, or set splits or minimum",
                )

    def _error(
        self,
        place: Sequence[str | int],
        message: str,
        kind: type[ConfigError] | type[ActivationsError] = ConfigError,
    ) -> ConfigError | ActivationsError:
        concept = f" concept {place[1]!r}:" if place[0] == "concepts" else ""
        where = f"{self.path}, line {line_of(self.root, place)}"
        return kind(f"{where}:{concept} {message}")
