# SPDX-License-Identifier: Apache-2.0
"""sauce-tiny, and pictures to ask it about that it was not trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tiny.concepts import FOREGROUNDS, HELD_OUT_STYLE, TRAIN_STYLES
from tiny.dataset import HELD_OUT_SEED, pixel_values
from tiny.world import Picture, Renderer

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
