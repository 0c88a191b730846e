# SPDX-License-Identifier: Apache-2.0
"""How much ``sauce learn`` has to look at and to ask: counted in its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.data.sample_sources import find_samples
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.questionnaire import Questionnaire, share_of
from vllm_sauce.evaluation.questions import Question
from vllm_sauce.learning.calibration.run import SCORE_SPLIT, SEARCH_SPLIT
from vllm_sauce.learning.request import LearnRequest
from vllm_sauce.learning.stages import trained_on
from vllm_sauce.models.chat_prompts import chat_texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Questions of all concepts on one split."""

    questions: int = 0
    pictures: int = 0
    """Shown to them, each once a concept."""
    distinct: int = 0
    """Pictures among these."""
    screening: int = 0
    """Questions that the search itself asks of every setting."""
    screening_pictures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much there is to look at."""

    samples: int
    """Prompts of the selection split."""
    shown: int = 0
    """Those with a picture."""
    pictures: int = 0
    """Distinct pictures among them."""
    concepts: int = 0
    words: int = 0
    """Tokens of all prompts' words with their templates; 0 if not known."""
    written: int = 0
    """Tokens that the model may write for them."""
    training: Counts | None = None
    """What SAEs are trained on, if it is not what the concepts show."""
    searched: Asked = Asked()
    """What the search of each concept asks."""
    scored: Asked = Asked()
    """What its result is asked."""


def count(request: LearnRequest) -> Counts:
    """Count what the files lead to; each picture of the concepts is read once.

    Raises: ConfigError, ActivationsError
    """
    file = ConceptFile.read(request.concepts)
    samples = file.samples("selection")
    shown = [s.picture.name for s in samples if s.picture is not None]
    return Counts(
        samples=len(samples),
        shown=len(shown),
        pictures=len(set(shown)),
        concepts=len(file.concepts),
        written=len(samples) * request.harvest.max_tokens,
        words=_words(request.model, [s.prompt for s in samples]) if not shown else 0,
        training=_training(request) if request.trained else None,
        searched=_asked(request, file, SEARCH_SPLIT),
        scored=_asked(request, file, SCORE_SPLIT),
    )


def pictures_alone(number: int) -> Counts:
    """Each is a sample with one prompt."""
    return Counts(samples=number, shown=number, pictures=number)


def _training(request: LearnRequest) -> Counts | None:
    shown = trained_on(request)
    if shown is None:
        return None
    found = find_samples(**asdict(shown))
    if not shown.texts:
        return pictures_alone(len(found))
    return Counts(
        samples=len(found),
        words=_words(request.model, [s.prompt for s in found]),
        written=len(found) * request.harvest.max_tokens,
    )


def _words(model: str, prompts: Sequence[str]) -> int:
    """Count the tokens of prompts as a chat brings them; 0 if the model cannot say."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
        texts = chat_texts(tokenizer, prompts)
    # Without a tokenizer's files it fails in ways that differ by release.
    except (OSError, ValueError, ConfigError):
        return 0
    return sum(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))


def _asked(request: LearnRequest, file: ConceptFile, split: str) -> Asked:
    """Count the questions that calibration will ask on a split."""
    drawn, config = Questionnaire(file, split), request.calibration
    counts = config.positives, config.negatives, config.watched
    found = [drawn.questions(name, *counts) for name in file.concepts]
    screened = [
        [asked[i] for i in share_of(asked, config.screen, watched=False)]
        for asked in found
    ]
    shown = [_pictures(asked) for asked in found]
    return Asked(
        questions=sum(map(len, found)),
        pictures=sum(map(len, shown)),
        distinct=len(set().union(*shown)),
        screening=sum(map(len, screened)),
        screening_pictures=sum(len(_pictures(asked)) for asked in screened),
    )


def _pictures(questions: Sequence[Question]) -> set[str]:
    return {one.picture.name for one in questions if one.picture is not None}
