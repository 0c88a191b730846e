# SPDX-License-Identifier: Apache-2.0
"""Exams for sauce-tiny: balanced pictures and twelve answers to read from each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tiny.concepts import (
    CONCEPTS,
    DOMAIN_OF,
    DOMAINS,
    FOREGROUNDS,
    HELD_OUT_STYLE,
    TRAIN_STYLES,
)
from tiny.dataset import HELD_OUT_SEED, pixel_values
from tiny.marking import DESCRIBE, NAME, NO, YES, Exam
from tiny.questions import (
    TRAIN,
    Phrasings,
    answer_name,
    describe,
    describe_questions,
    naming_questions,
    yes_no_questions,
)
from tiny.sheets import pad_blocks
from tiny.world import Picture, Renderer
from vllm_sauce.models.shared_prefix import Sheet
from vllm_sauce.models.site_hooks import vision_features

MODEL_FOLDER = Path(__file__).parent / "model"
LATENTS_FOLDER = Path(__file__).parent / "latents"
"""The bundle of SAE latents that stands beside the shipped one."""
SEEDS = {
    "selection": 11,
    "calibration": 12,
    "scoring": 13,
    "quality": 14,
    "user": 15,
}
"""Each split draws its own pictures; none is seen in training."""
STYLES = {"train": TRAIN_STYLES, "held-out": (HELD_OUT_STYLE,)}
KIND_OF_READ = [NAME] * 3 + [YES] * 3 + [NO] * 3 + [DESCRIBE] * 3
BLOCK_OF_READ = [*range(9), 9, 9, 9]


@dataclass(frozen=True)
class Tiny:
    """sauce-tiny and its tokenizer."""

    model: Any
    tokenizer: Any
    prefix_ids: list[int]
    """Tokens of a prompt up to the last image token."""
    before: str
    """Text between the image and the question."""
    after: str
    """Text after the question."""

    @classmethod
    def load(cls, folder: Path = MODEL_FOLDER) -> "Tiny":
        """Load the model in float32 and take its chat template apart."""
        model = LlavaForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        processor = AutoProcessor.from_pretrained(folder)
        content = [{"type": "image"}, {"type": "text", "text": "QUESTION"}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        head, tail = text.split("<image>")
        before, after = tail.split("QUESTION")
        patches = model.config.image_seq_length
        ids = processor.tokenizer(head + "<image>" * patches).input_ids
        return cls(model, processor.tokenizer, ids, before, after)

    def block(self, question: str, answer: str = "") -> list[int]:
        """Return the tokens from the question on, with the start of an answer."""
        text = f"{self.before}{question}{self.after} {answer}"
        ids: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def token(self, word: str) -> int:
        """Return the one token of a word."""
        (token,) = self.tokenizer(word, add_special_tokens=False).input_ids
        return int(token)


def balanced_pictures(
    split: str, per_foreground: int, style: str = "train"
) -> list[Picture]:
    """Draw the same number of pictures of every foreground concept."""
    rng = np.random.default_rng(HELD_OUT_SEED + SEEDS[split])
    renderer = Renderer(STYLES[style])
    pictures = [
        renderer.picture(rng, foreground)
        for foreground in FOREGROUNDS
        for _ in range(per_foreground)
    ]
    return [pictures[i] for i in rng.permutation(len(pictures))]


def pixels_of(pictures: Sequence[Picture]) -> Tensor:
    """Return the model's input for pictures."""
    return pixel_values(np.stack([np.asarray(p.image) for p in pictures]))


def build_exam(
    tiny: Tiny,
    pictures: Sequence[Picture],
    seed: int,
    phrasings: Phrasings = TRAIN,
    longest_block: int | None = None,
    pixels: Tensor | None = None,
) -> Exam:
    """Ask every picture twelve things, in phrasings drawn from ``seed``.

    ``longest_block`` keeps to phrasings of at most so many tokens, to save time.
    Pictures need no image when ``pixels`` [num_pictures, 3, 56, 56] are given.
    """
    rng = np.random.default_rng(seed)
    # A few hundred questions are asked of thousands of pictures.
    tokens_of = cache(tiny.block)
    pages = [_Page(tiny, tokens_of, p, rng, phrasings, longest_block) for p in pictures]
    sheet = Sheet(
        prefix_ids=torch.tensor(tiny.prefix_ids),
        suffix_ids=pad_blocks([p.blocks for p in pages], 0),
        read_block=torch.tensor(BLOCK_OF_READ),
        read_at=torch.tensor([page.read_at for page in pages]),
    )
    about = torch.tensor([[CONCEPTS.index(c) for c in page.about] for page in pages])
    present = torch.zeros(len(pictures), len(CONCEPTS), dtype=torch.bool)
    for row, picture in enumerate(pictures):
        for concept in picture.concepts:
            present[row, CONCEPTS.index(concept)] = True
    tokens = torch.tensor([tiny.token(answer_name(c)) for c in CONCEPTS])
    kind = torch.tensor(KIND_OF_READ)
    expected = tokens[about]
    expected = torch.where(kind == YES, tiny.token("yes"), expected)
    expected = torch.where(kind == NO, tiny.token("no"), expected)
    domains = list(DOMAINS)
    return Exam(
        sheet=sheet,
        vision=vision_features(
            tiny.model, pixels_of(pictures) if pixels is None else pixels
        ),
        kind=kind,
        about=about,
        expected=expected,
        present=present,
        domain_of=torch.tensor([domains.index(DOMAIN_OF[c]) for c in CONCEPTS]),
        no_token=tiny.token("no"),
    )


class _Page:
    """The blocks of one picture, and where its answers are read."""

    def __init__(
        self,
        tiny: Tiny,
        tokens_of: Callable[..., list[int]],
        picture: Picture,
        rng: np.random.Generator,
        phrasings: Phrasings,
        longest: int | None,
    ) -> None:
        self.tokens_of, self.rng, self.longest = tokens_of, rng, longest
        there = list(picture.concepts)
        absent = [self._absent(concept) for concept in there]
        self.blocks = [
            self._ask(naming_questions(DOMAIN_OF[c], phrasings)) for c in there
        ]
        self.blocks += [
            self._ask(yes_no_questions(c, phrasings)) for c in (*there, *absent)
        ]
        self.read_at = [len(block) - 1 for block in self.blocks]
        answer = describe(picture)
        self.blocks.append(self._ask(describe_questions(phrasings), answer))
        words = tokens_of("", answer)
        for concept in there:
            from_end = words[::-1].index(tiny.token(answer_name(concept)))
            self.read_at.append(len(self.blocks[-1]) - from_end - 2)
        self.about = [*there, *there, *absent, *there]

    def _absent(self, concept: str) -> str:
        others = [c for c in DOMAINS[DOMAIN_OF[concept]] if c != concept]
        return str(self.rng.choice(others))

    def _ask(self, questions: Sequence[str], answer: str = "") -> list[int]:
        blocks = [self.tokens_of(question, answer) for question in questions]
        if self.longest is not None:
            shortest = min(map(len, blocks))
            blocks = [b for b in blocks if len(b) <= max(self.longest, shortest)]
        return blocks[int(self.rng.integers(len(blocks)))]
