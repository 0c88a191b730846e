# SPDX-License-Identifier: Apache-2.0
"""Ask a model about pictures, under edits: how probable is each right answer?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from vllm_sauce.concepts import VISION, Catalogue
from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.quiz import NAME, YES, Marks, Question, Wording, mark
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.sample_batches import sample_batches
from vllm_sauce.models.shared_prefix import SharedPrefix, Sheet
from vllm_sauce.models.site_hooks import SiteFn, site_hook


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as a model reads it."""

    picture: int
    text: str
    given: tuple[int, ...]
    """Tokens of the answer that are given; the next ones are read."""
    accepted: tuple[tuple[int, ...], ...]
    """Tokens that are right, at each place from the answer's first token on."""


class Way(Protocol):
    """A way to ask."""

    def answer(
        self, asked: Sequence[Asked], edits: Mapping[str, SiteFn]
    ) -> tuple[Tensor, Tensor]:
        """Return each right answer's probability, and whether it would be given."""
        ...


class Quiz:
    """Questions ready to be asked under any edit; pictures are numbered samples."""

    def __init__(
        self,
        loaded: LoadedModel,
        samples: Sequence[Sample],
        questions: Sequence[Question],
        catalogue: Catalogue,
        wording: Wording,
        batch_pictures: int = 8,
    ) -> None:
        self.loaded, self.questions = loaded, tuple(questions)
        self.wording, self.catalogue = wording, catalogue
        self.batch_pictures = batch_pictures
        way = SharedPictures if shares_pictures(loaded) else PlainPrompts
        self.way: Way = way(loaded, samples)
        self._names: dict[str, list[int]] = {}
        self._names = self._spellings()

    def ask(
        self, edits: Mapping[str, SiteFn], questions: Sequence[int] | None = None
    ) -> Marks:
        """Answer some questions, by number (default: all), under edits by site.

        Shapes: -> [num_questions]
        """
        chosen = list(range(len(self.questions)) if questions is None else questions)
        probability = torch.zeros(len(chosen))
        right = torch.zeros(len(chosen), dtype=torch.bool)
        for places in self._batches(chosen):
            asked = [self._asked(self.questions[chosen[place]]) for place in places]
            probability[places], right[places] = self.way.answer(asked, edits)
        return Marks(probability, right)

    def _batches(self, chosen: Sequence[int]) -> Iterator[list[int]]:
        """Yield places in ``chosen``, the questions about some pictures at a time."""
        by_picture: dict[int, list[int]] = {}
        for place, number in enumerate(chosen):
            by_picture.setdefault(self.questions[number].picture, []).append(place)
        # Pictures with equally many questions together: less padding.
        groups = sorted(by_picture.values(), key=len)
        for start in range(0, len(groups), self.batch_pictures):
            yield [p for g in groups[start : start + self.batch_pictures] for p in g]

    def _asked(self, question: Question) -> Asked:
        domain = self.catalogue[question.concept].domain
        asked = self.wording.of_domain(domain)
        if question.answer == NAME:
            name = self._names[question.concept]
            right = tuple((token,) for token in name)
            return Asked(question.picture, asked.name[0], tuple(name[:-1]), right)
        text = asked.asks(self.wording.words(question.concept)[0])
        word = asked.yes if question.answer == YES else asked.no
        first = {ids[0] for ids in self._token_forms((word,))}
        return Asked(question.picture, text, (), (tuple(sorted(first)),))

    def _token_forms(self, words: Sequence[str]) -> list[list[int]]:
        """Return the ways in which a model may write one of some words.

        Raises: ConfigError if there is none
        """
        tokenizer = self.loaded.processor.tokenizer
        forms: list[list[int]] = []
        cased = [text for word in words for text in (word, word.capitalize())]
        for text in (*cased, *(f" {text}" for text in cased)):
            ids = tokenizer(text, add_special_tokens=False).input_ids
            blank = not ids or not tokenizer.decode(ids[:1]).strip()
            if not blank and ids not in forms:
                forms.append(ids)
        if not forms:
            raise ConfigError(f"the model's tokenizer has no tokens for {words!r}")
        return forms

    def _spellings(self) -> dict[str, list[int]]:
        """Return each name's tokens as the unedited model likes best to write it."""
        first = {q.concept: i for i, q in enumerate(self.questions) if q.answer == NAME}
        forms = {name: self._token_forms(self.wording.words(name)) for name in first}
        chosen = {name: spelled[0] for name, spelled in forms.items()}
        doubtful = [name for name, spelled in forms.items() if len(spelled) > 1]
        best = dict.fromkeys(doubtful, -1.0)
        for number in range(max((len(forms[name]) for name in doubtful), default=0)):
            tried = {n: forms[n][number] for n in doubtful if number < len(forms[n])}
            self._names = chosen | tried
            found = self.ask({}, [first[name] for name in tried]).probability.tolist()
            for name, value in zip(tried, found, strict=True):
                if value > best[name]:
                    best[name], chosen[name] = value, tried[name]
        return chosen


def shares_pictures(loaded: LoadedModel) -> bool:
    """Return whether the model is one that ``SharedPrefix`` computes exactly."""
    config = loaded.model.config
    return config.model_type == "llava" and config.text_config.model_type == "llama"


class SharedPictures:
    """All questions about a picture in one pass; LLaVA on Llama."""

    def __init__(self, loaded: LoadedModel, samples: Sequence[Sample]) -> None:
        self.loaded = loaded
        self.runner = SharedPrefix(loaded.model)
        self.some_picture = samples[0]
        self.suffixes: dict[str, list[int]] = {}
        self.prefix: list[int] = []
        # Edits come behind the tower, so it needs to run but once.
        self.vision = torch.cat(
            [
                batch.activations[VISION].to("cpu", loaded.model.dtype)
                for batch in sample_batches(loaded, samples, [VISION])
            ]
        )

    def suffix(self, question: str) -> list[int]:
        """Return a prompt's tokens behind the picture."""
        if question not in self.suffixes:
            sample = replace(self.some_picture, prompt=question)
            ids: list[int] = self.loaded.inputs([sample])["input_ids"][0].tolist()
            end = len(ids) - ids[::-1].index(self.loaded.image_token_id)
            self.prefix, self.suffixes[question] = ids[:end], ids[end:]
        return self.suffixes[question]

    @torch.inference_mode()
    def answer(
        self, asked: Sequence[Asked], edits: Mapping[str, SiteFn]
    ) -> tuple[Tensor, Tensor]:
        """Return each right answer's probability, and whether it would be given."""
        pictures = sorted({item.picture for item in asked})
        sheet, where = self._sheet(asked, pictures)
        with torch.device(self.loaded.device):
            vision = self.vision[pictures].to(self.loaded.device)
            logits = self.runner.logits(sheet, vision, edits, len(pictures))
        return mark(logits.float().cpu(), where, [item.accepted for item in asked])

    def _sheet(
        self, asked: Sequence[Asked], pictures: Sequence[int]
    ) -> tuple[Sheet, list[tuple[int, int]]]:
        """Return the tokens, and picture and first read of every question."""
        tokens = [[*self.suffix(item.text), *item.given] for item in asked]
        mine = [[i for i, a in enumerate(asked) if a.picture == p] for p in pictures]
        reads = max(len(item.accepted) for item in asked)
        blocks = max(map(len, mine))
        pad = int(self.loaded.processor.tokenizer.pad_token_id or 0)
        ids = torch.full((len(mine), blocks, max(map(len, tokens))), pad)
        read_at = torch.zeros(len(mine), blocks, reads, dtype=torch.long)
        where = [(0, 0)] * len(asked)
        for row, numbers in enumerate(mine):
            for block, i in enumerate(numbers):
                words = tokens[i]
                ids[row, block, : len(words)] = torch.tensor(words)
                first = len(words) - len(asked[i].accepted)
                steps = (first + torch.arange(reads)).clamp(max=len(words) - 1)
                read_at[row, block] = steps
                where[i] = (row, block * reads)
        device = self.loaded.device
        sheet = Sheet(
            torch.tensor(self.prefix, device=device),
            ids.to(device),
            torch.arange(blocks, device=device).repeat_interleave(reads),
            read_at.flatten(1).to(device),
            pad,
        )
        return sheet, where


class PlainPrompts:
    """One prompt a question, through the model's own forward pass."""

    def __init__(self, loaded: LoadedModel, samples: Sequence[Sample]) -> None:
        self.loaded, self.samples = loaded, samples

    def answer(
        self, asked: Sequence[Asked], edits: Mapping[str, SiteFn]
    ) -> tuple[Tensor, Tensor]:
        """Return each right answer's probability, and whether it would be given."""
        probability = torch.zeros(len(asked))
        right = torch.zeros(len(asked), dtype=torch.bool)
        for reads in {len(item.accepted) for item in asked}:
            places = [i for i, a in enumerate(asked) if len(a.accepted) == reads]
            part = [asked[i] for i in places]
            logits = self._logits(part, reads, edits)
            where = [(i, 0) for i in range(len(part))]
            accepted = [item.accepted for item in part]
            probability[places], right[places] = mark(logits, where, accepted)
        return probability, right

    @torch.inference_mode()
    def _logits(
        self, asked: Sequence[Asked], reads: int, edits: Mapping[str, SiteFn]
    ) -> Tensor:
        """Return the logits from each answer's first token on.

        Shapes: -> [num_questions, reads, vocab]
        """
        samples = [replace(self.samples[a.picture], prompt=a.text) for a in asked]
        inputs = self.loaded.inputs(samples)
        given = torch.tensor([a.given for a in asked], dtype=torch.long)
        for name, fill in _beside_ids(inputs):
            more = torch.full_like(given, fill) if name != "input_ids" else given
            inputs[name] = torch.cat([inputs[name], more.to(inputs[name])], dim=1)
        with ExitStack() as hooks:
            for site, fn in edits.items():
                hooks.enter_context(site_hook(self.loaded.model, site, fn))
            logits = self.loaded.model(**inputs, logits_to_keep=reads).logits
        return logits.float().cpu()


def _beside_ids(inputs: Mapping[str, Tensor]) -> Iterable[tuple[str, int]]:
    """Yield what has one entry a token, and its value for a token of the answer."""
    shape = inputs["input_ids"].shape
    for name, x in inputs.items():
        if x.shape == shape:
            yield name, 1 if name == "attention_mask" else 0
