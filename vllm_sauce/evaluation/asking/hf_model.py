# SPDX-License-Identifier: Apache-2.0
"""Asks a model that transformers runs, with edits hooked into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import Tensor

from vllm_sauce.concepts import Catalogue
from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import UnsupportedFeatureError
from vllm_sauce.evaluation.asking.asker import Answer, Ask, Place, Progress
from vllm_sauce.evaluation.asking.shared_pictures import SharedPictures, shares_pictures
from vllm_sauce.models.answer_tokens import Tokens
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.site_edits import SiteAction, site_actions, sparing_sink
from vllm_sauce.models.site_hooks import site_hook
from vllm_sauce.sae import SAEWeights

Places = dict[Tokens, Place]
BATCH = 32
"""Prompts that are run at once, where each question has its own."""


class ModelAsker:
    """Asks a model under the edits of a catalogue, one concept's at a time."""

    def __init__(
        self,
        loaded: LoadedModel,
        catalogue: Catalogue | None = None,
        saes: Mapping[str, SAEWeights] | None = None,
    ) -> None:
        self.loaded, self.tokenizer = loaded, loaded.tokenizer
        self.catalogue, self.saes = catalogue or Catalogue(), saes or {}
        self._texts: dict[Tokens, str] = {}
        self.prompts = PlainPrompts(loaded)
        self.pictures: PlainPrompts | SharedPictures = self.prompts
        if shares_pictures(loaded):
            self.pictures = SharedPictures(loaded, tuple(self.saes))

    def ask(
        self, asks: Sequence[Ask], progress: Progress = lambda done, total: None
    ) -> list[Answer]:
        """Return the answers, in their order.

        Raises: UnknownConceptError for a concept that the catalogue does not have
        """
        assert all(len(a.forget) < 2 and a.max_tokens == 1 for a in asks), "ask vLLM"
        groups: dict[tuple[tuple[str, ...], float], list[int]] = {}
        for number, ask in enumerate(asks):
            edit = (ask.forget, ask.strength) if ask.edited else ((), 0.0)
            groups.setdefault(edit, []).append(number)
        edits = {edit: self._edits(*edit) for edit in groups}
        answers: dict[int, Answer] = {}
        progress(0, len(asks))
        for edit, numbers in groups.items():
            pictured = [n for n in numbers if asks[n].question.picture is not None]
            plain = [n for n in numbers if asks[n].question.picture is None]
            # A shared picture's tokens and those of text are not in one pass.
            kinds = any(action.only for action in edits[edit].values())
            shown = self.prompts if kinds else self.pictures
            ways = (shown, pictured), (self.prompts, plain)
            for way, mine in ways:
                part = [asks[n] for n in mine]
                places = way.read(part, edits[edit]) if part else []
                for n, found in zip(mine, places, strict=True):
                    answers[n] = self._answer(asks[n], found)
            progress(len(answers), len(asks))
        return [answers[number] for number in range(len(asks))]

    def _answer(self, ask: Ask, places: Places) -> Answer:
        answer = Answer.read(ask, places, "")
        return replace(answer, text=self._text(answer.said))

    def _text(self, said: Tokens) -> str:
        if said not in self._texts:
            text = self.tokenizer.decode(list(said), skip_special_tokens=True)
            self._texts[said] = text.strip()
        return self._texts[said]

    def _edits(self, names: tuple[str, ...], strength: float) -> dict[str, SiteAction]:
        """Return what is done at each site."""
        found = [self.catalogue.concept(name) for name in names]
        edits = found[0].edits if found else {}
        return site_actions(self.saes, edits, strength, self.loaded.device)


class PlainPrompts:
    """One prompt a question, through the model's own forward pass."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded

    def read(
        self, asks: Sequence[Ask], edits: Mapping[str, SiteAction]
    ) -> list[Places]:
        """Return the places of each answer; all asks are under the same edits."""
        found: list[Places] = [{} for _ in asks]
        by_length: dict[int, list[tuple[int, Tokens]]] = {}
        for number, ask in enumerate(asks):
            for line in ask.lines():
                by_length.setdefault(len(line), []).append((number, line))
        for length, rows in by_length.items():
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                inputs = self._inputs([(asks[n], line) for n, line in part])
                logprobs = self._logprobs(inputs, edits, 1 + length)
                for row, (number, line) in enumerate(part):
                    ask = asks[number]
                    for before, tokens in ask.places().items():
                        if line[: len(before)] == before:
                            at = logprobs[row, len(before)]
                            found[number][before] = place(at, tokens)
        return found

    def _inputs(self, rows: Sequence[tuple[Ask, Tokens]]) -> dict[str, Tensor]:
        """Return prompts with what is given of their answers, all of one length."""
        asked = [ask.question for ask, _ in rows]
        samples = [Sample(key="", prompt=q.prompt, picture=q.picture) for q in asked]
        # All of a batch is under the same edits, whoever its rows belong to.
        inputs = self.loaded.inputs(samples)
        given = torch.tensor([line for _, line in rows]).long()
        return self.loaded.continued(inputs, given)

    @torch.inference_mode()
    def _logprobs(
        self, inputs: Mapping[str, Tensor], edits: Mapping[str, SiteAction], keep: int
    ) -> Tensor:
        """Return log-probabilities of what follows the last tokens.

        Shapes: -> [rows, keep, vocab]
        Raises: UnsupportedFeatureError for an edit of some kinds of tokens where a
            picture's cannot be told
        """
        first = inputs["attention_mask"].argmax(1)
        image = inputs["input_ids"] == self.loaded.image_token_id
        kinds = any(edit.only for edit in edits.values())
        pictured = any(name.startswith("pixel") for name in inputs)
        if kinds and pictured and not image.any():
            raise UnsupportedFeatureError(
                "an edit is of a picture's tokens or of text alone, and this model's "
                "prompts do not say which those are: ask vLLM"
            )
        with ExitStack() as hooks:
            for site, edit in edits.items():
                fn = sparing_sink(edit, first, image)
                hooks.enter_context(site_hook(self.loaded.model, site, fn))
            logits = self.loaded.model(**inputs, logits_to_keep=keep).logits
        return logits.float().cpu().log_softmax(-1)


def place(logprobs: Tensor, tokens: Tokens) -> Place:
    """Return what is said at a place. Shapes: logprobs [vocab]"""
    said = int(logprobs.argmax())
    read = (*tokens, said)
    values = logprobs[list(read)].tolist()
    return Place((said,), dict(zip(read, values, strict=True)))
