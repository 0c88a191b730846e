# SPDX-License-Identifier: Apache-2.0
"""Which samples, and which tokens, a concept's rows are told from each other by."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vllm_sauce.data.concepts_yaml import ConceptExamples
from vllm_sauce.evaluation.questions import word_pattern
from vllm_sauce.learning.selection.latent_statistics import sample_groups

OTHERS, ABSENCE, WORDS, SAYING = ("others", "absence", "words", "saying")


class Group(NamedTuple):
    """Concepts whose rows are told from the same kind of samples or tokens."""

    kind: str
    concepts: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    """Columns of the groups: with the concept, and without."""


def groups_of_samples(
    samples: Sequence[Mapping[str, Any]],
    concepts: Sequence[ConceptExamples],
    split: str,
    site: str,
    enough: int,
) -> tuple[Tensor, list[Group]]:
    """Return which sample is in which group, and the groups that rows tell apart.

    Behind the columns of ``sample_groups`` is one for each domain: samples that lack
    every concept of it and show as little else as ``enough`` of them do, so that
    nothing stands in its place.

    Shapes: -> [num_samples, 2 * num_concepts + num_domains] bool
    """
    groups = sample_groups(samples, concepts, split, site)
    names = tuple(one.name for one in concepts)
    domains: dict[str, list[int]] = {}
    for number, one in enumerate(concepts):
        domains.setdefault(one.domain, []).append(number)
    columns = [groups]
    absent: dict[str, int] = {}
    shown = groups[:, 0::2].sum(1)
    for domain, members in domains.items():
        lacking = groups[:, [2 * one + 1 for one in members]].all(1)
        # With one concept, to lack it and to lack all of them is the same.
        if len(members) > 1 and bool(lacking.any()):
            absent[domain] = 2 * len(concepts) + len(absent)
            columns.append(_emptiest(lacking, shown, enough)[:, None])
    others = tuple((2 * one, 2 * one + 1) for one in range(len(concepts)))
    kinds = [Group(OTHERS, names, others)]
    if absent:
        mine = [one for one, c in enumerate(concepts) if c.domain in absent]
        pairs = tuple((2 * one, absent[concepts[one].domain]) for one in mine)
        kinds.append(Group(ABSENCE, tuple(names[one] for one in mine), pairs))
    return torch.cat(columns, 1), kinds


def _emptiest(lacking: Tensor, shown: Tensor, enough: int) -> Tensor:
    """Return those of some samples that show the fewest concepts, enough of them.

    Shapes: lacking [num_samples] bool, shown [num_samples] -> [num_samples] bool
    """
    counts = shown[lacking].sort().values
    return lacking & (shown <= counts[min(enough, len(counts)) - 1])


class WordGroups:
    """Tokens of texts by concept: its words, what the model says them after, others.

    Three columns a concept. The second are tokens whose next one the model wrote, and
    which begins one of the words: where it was about to say it. Others are the tokens
    of samples without it, up to where one of its words comes all the same. What all
    texts begin with is in no group: it is alike in every one of them.
    """

    def __init__(
        self,
        tokenizer: Any,
        texts: Mapping[int, Sequence[int]],
        prompts: Mapping[int, int],
        concepts: Sequence[ConceptExamples],
        groups: Tensor,
    ) -> None:
        """``texts``: the tokens of each sample of text alone, by its number;
        ``prompts``: how many of them the model did not write.
        """
        self.names = tuple(one.name for one in concepts)
        self.num_groups = 3 * len(concepts)
        begin = common_beginning(list(texts.values()))
        patterns = [word_pattern(one.answers) for one in concepts]
        self._groups: dict[int, Tensor] = {}
        for sample, tokens in texts.items():
            pieces = text_pieces(tokenizer, tokens)
            columns = []
            for number, pattern in enumerate(patterns):
                hits = torch.tensor(word_hits(pieces, pattern), dtype=torch.bool)
                without = groups[sample, 2 * number + 1] & ~after_words(hits)
                columns += [hits, saying(hits, prompts[sample]), without]
            found = torch.stack(columns, 1)
            found[:begin] = False
            self._groups[sample] = found

    def of(self, sample: Tensor, position: Tensor) -> Tensor:
        """Return the groups of tokens, none for those of samples with a picture.

        Shapes: sample, position [num_rows] -> [num_rows, num_groups] bool
        """
        found = torch.zeros(len(sample), self.num_groups, dtype=torch.bool)
        for number in torch.unique(sample).tolist():
            if number in self._groups:
                mine = sample == number
                found[mine] = self._groups[number][position[mine].long()]
        return found

    def kinds(self, count: Tensor) -> list[Group]:
        """Return what rows tell apart, of concepts whose words were met.

        Shapes: count [num_groups]
        """
        kinds = []
        for offset, kind in enumerate((WORDS, SAYING)):
            met = [
                number
                for number in range(len(self.names))
                if count[3 * number + offset] and count[3 * number + 2]
            ]
            pairs = tuple((3 * one + offset, 3 * one + 2) for one in met)
            names = tuple(self.names[one] for one in met)
            kinds += [Group(kind, names, pairs)] if met else []
        return kinds


def text_pieces(tokenizer: Any, tokens: Sequence[int]) -> list[str]:
    """Return what each token adds to a text, its blank among it.

    Some tokenizers drop the blank of a text's first token: each is read behind another.
    """
    before = tokenizer("a", add_special_tokens=False).input_ids[-1]
    start = len(tokenizer.decode([before]))
    pieces = {one: tokenizer.decode([before, one])[start:] for one in set(tokens)}
    return [pieces[token] for token in tokens]


def word_hits(pieces: Sequence[str], pattern: re.Pattern[str]) -> list[bool]:
    """Say of each piece of a text whether it is part of a match."""
    ends = [0, *itertools.accumulate(map(len, pieces))]
    spans = [match.span() for match in pattern.finditer("".join(pieces))]
    return [
        any(start < ends[at + 1] and end > ends[at] for start, end in spans)
        for at in range(len(pieces))
    ]


def common_beginning(texts: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all texts begin with alike: a template's."""
    # It takes any sequences, not paths alone.
    return len(os.path.commonprefix([list(text) for text in texts]))


def saying(hits: Tensor, prompt: int) -> Tensor:
    """Return the token before each run of hits that begins behind the prompt.

    Shapes: hits [num_tokens] bool, same out
    """
    found = torch.zeros_like(hits)
    found[:-1] = hits[1:] & ~hits[:-1]
    found[: max(prompt - 1, 0)] = False
    return found


def after_words(hits: Tensor) -> Tensor:
    """Return the tokens from the first hit on. Shapes: [num_tokens] bool, same out"""
    return torch.cummax(hits.to(torch.uint8), 0).values.bool()
