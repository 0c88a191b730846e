# SPDX-License-Identifier: Apache-2.0
"""How often does sauce-tiny answer right? By kind, domain and style.

``PYTHONPATH=examples python -m tiny.evaluate`` asks held-out phrasings about
pictures never trained on, with transformers, and prints one table per style.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from tiny.concepts import DOMAIN_OF, DOMAINS, FOREGROUNDS, HELD_OUT_STYLE, TRAIN_STYLES
from tiny.dataset import HELD_OUT_SEED
from tiny.export import MODEL_FOLDER
from tiny.questions import (
    HELD_OUT,
    NO,
    YES,
    Phrasings,
    describe,
    describe_questions,
    naming_questions,
    yes_no_questions,
)
from tiny.world import Picture, Renderer

MAX_ANSWER_TOKENS = 8
EVALUATION_SEED = HELD_OUT_SEED + 500


@dataclass(frozen=True)
class Question:
    """One question about one picture and its right answer."""

    image: Image.Image
    text: str
    answer: str
    kind: str
    """``name``, ``yes/no`` or ``describe``."""
    domain: str
    """The domain asked about, or ``all`` for a description."""


class TinyModel:
    """The exported model with its processor, in float32."""

    def __init__(self, folder: Path = MODEL_FOLDER) -> None:
        processor = AutoProcessor.from_pretrained(folder)
        assert isinstance(processor, LlavaProcessor)
        self.processor = processor
        self.model = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()

    def prompt(self, question: str) -> str:
        """Return the chat prompt of a question about a picture."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        message = [{"role": "user", "content": content}]
        text: str = self.processor.apply_chat_template(
            message, add_generation_prompt=True
        )
        return text

    @torch.no_grad()
    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[str], batch: int = 64
    ) -> list[str]:
        """Return the greedy answers to one question per picture."""
        replies: list[str] = []
        for start in range(0, len(images), batch):
            inputs = self.processor(
                images=list(images[start : start + batch]),
                text=[self.prompt(q) for q in questions[start : start + batch]],
                return_tensors="pt",
                padding=True,
            )
            tokens: Tensor = self.model.generate(
                **inputs, max_new_tokens=MAX_ANSWER_TOKENS, do_sample=False
            )
            new = tokens[:, inputs["input_ids"].shape[1] :]
            replies += self.processor.batch_decode(new, skip_special_tokens=True)
        return replies


def questions_about(
    rng: np.random.Generator, picture: Picture, phrasings: Phrasings
) -> list[Question]:
    """Return naming, balanced yes/no and description questions on a picture."""

    def one(texts: Sequence[str]) -> str:
        return texts[int(rng.integers(len(texts)))]

    found = []
    for concept in picture.concepts:
        domain = DOMAIN_OF[concept]
        others = [c for c in DOMAINS[domain] if c != concept]
        text = one(naming_questions(domain, phrasings))
        found.append(Question(picture.image, text, concept, "name", domain))
        for asked, answer in ((concept, YES), (one(others), NO)):
            text = one(yes_no_questions(asked, phrasings))
            found.append(Question(picture.image, text, answer, "yes/no", domain))
    text = one(describe_questions(phrasings))
    right = describe(picture)
    found.append(Question(picture.image, text, right, "describe", "all"))
    return found


def evaluation_pictures(styles: Sequence[str], per_concept: int) -> list[Picture]:
    """Draw pictures never trained on, every icon ``per_concept`` times."""
    rng = np.random.default_rng([EVALUATION_SEED, len(styles)])
    renderer = Renderer(styles)
    wanted = [name for name in FOREGROUNDS for _ in range(per_concept)]
    return [renderer.picture(rng, foreground) for foreground in wanted]


def accuracy(
    model: TinyModel, questions: Sequence[Question]
) -> dict[tuple[str, str], float]:
    """Return the share of exactly right answers by (kind, domain)."""
    # Alike ones together: a batch is answered when its longest answer is.
    questions = sorted(questions, key=lambda question: question.kind)
    replies = model.answers([q.image for q in questions], [q.text for q in questions])
    right = defaultdict(list)
    for question, reply in zip(questions, replies, strict=True):
        right[question.kind, question.domain].append(reply == question.answer)
        if question.kind != "describe":
            right[question.kind, "all"].append(reply == question.answer)
    return {key: sum(hits) / len(hits) for key, hits in right.items()}


def ask(pictures: Iterable[Picture], phrasings: Phrasings) -> list[Question]:
    """Return the same questions about the same pictures every time."""
    rng = np.random.default_rng(EVALUATION_SEED)
    return [q for p in pictures for q in questions_about(rng, p, phrasings)]


def table(title: str, shares: dict[tuple[str, str], float]) -> Table:
    """Lay shares out with one row per kind and one column per domain."""
    columns = [*DOMAINS, "all"]
    grid = Table("kind", *columns, title=title)
    for kind in ("name", "yes/no", "describe"):
        cells = [shares.get((kind, column)) for column in columns]
        grid.add_row(kind, *["" if c is None else f"{100 * c:.1f} %" for c in cells])
    return grid


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_FOLDER)
    parser.add_argument("--per-concept", type=int, default=12)
    arguments = parser.parse_args()
    console = Console()
    model = TinyModel(arguments.model)
    for styles in (TRAIN_STYLES, (HELD_OUT_STYLE,)):
        questions = ask(evaluation_pictures(styles, arguments.per_concept), HELD_OUT)
        title = f"{', '.join(styles)} ({len(questions)} questions, held-out phrasings)"
        console.print(table(title, accuracy(model, questions)))


if __name__ == "__main__":
    main()
