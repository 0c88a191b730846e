# SPDX-License-Identifier: Apache-2.0
"""A transformers vision-language model with its processor, as chat prompts see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.data.samples import Sample, open_picture
from vllm_sauce.errors import ConfigError
from vllm_sauce.models.chat_prompts import chat_inputs


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model to look into; nothing of it is changed."""

    model: Any
    processor: Any

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> LoadedModel:
        """Load a model folder, on a GPU if there is one.

        Raises: ConfigError if transformers cannot load it
        """
        from transformers import AutoModelForImageTextToText, AutoProcessor

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto")
            processor = AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"transformers cannot load a vision-language model from {folder}: "
                f"{error}"
            ) from error
        # The last token of every prompt must stand in the last column.
        processor.tokenizer.padding_side = "left"
        return cls(model.to(device).eval(), processor)

    @property
    def image_token_id(self) -> int:
        """The token that stands for a patch in a prompt."""
        return int(self.model.config.image_token_id)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return a batch, padded on the left, on the model's device.

        All samples have a picture, or none has.

        Raises: ConfigError, ActivationsError
        """
        pictures = [open_picture(s.picture) for s in samples if s.picture is not None]
        prompts = [sample.prompt for sample in samples]
        batch = chat_inputs(self.processor, prompts, pictures)
        pixels = batch.get("pixel_values")
        if pixels is not None and (pixels.ndim != 4 or len(pixels) != len(samples)):
            raise ConfigError(
                "a picture must be one tensor [3, height, width] for this model, got "
                f"{list(pixels.shape)} for {len(samples)}: models that cut pictures "
                "into tiles cannot be inspected yet"
            )
        return {name: self._here(x) for name, x in batch.items() if torch.is_tensor(x)}

    def _here(self, x: Tensor) -> Tensor:
        dtype = self.model.dtype if x.is_floating_point() else x.dtype
        return x.to(self.device, dtype)

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return what each token reads, with blanks and line ends visible."""
        words = self.processor.tokenizer.convert_ids_to_tokens(list(ids))
        return [_readable(str(word)) for word in words]

    def seen(self, pixels: Tensor) -> Tensor:
        """Return pictures as the model sees them: cut, scaled, colours undone.

        Shapes: pixels [n, 3, H, W] -> [n, H, W, 3] uint8
        """
        images = self.processor.image_processor
        x = pixels.detach().float().cpu()
        if getattr(images, "do_normalize", False):
            mean, std = (
                torch.tensor(list(values)).view(1, 3, 1, 1)
                for values in (images.image_mean, images.image_std)
            )
            x = x * std + mean
        if not getattr(images, "do_rescale", True):
            x = x / 255
        return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def _readable(token: str) -> str:
    for mark, shown in (
        ("▁", " "),
        ("Ġ", " "),
        ("Ċ", "⏎"),
        ("<0x0A>", "⏎"),
        ("\n", "⏎"),
    ):
        token = token.replace(mark, shown)
    return token


def patch_grid(patches: int) -> tuple[int, int]:
    """Return height and width of a picture's square grid of patches.

    Raises: ConfigError
    """
    side = round(patches**0.5)
    if side * side != patches:
        raise ConfigError(
            f"a picture's patches must form a square, got {patches} of them"
        )
    return side, side
