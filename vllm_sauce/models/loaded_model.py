# SPDX-License-Identifier: Apache-2.0
"""A transformers model with its processor, as chat prompts see it: the one loader."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.data.samples import Sample, open_picture
from vllm_sauce.errors import ConfigError
from vllm_sauce.models import families
from vllm_sauce.models.chat_prompts import FALLBACKS, chat_inputs

_SHOWN = {"▁": " ", "Ġ": " ", "Ċ": "⏎", "<0x0A>": "⏎", "\n": "⏎"}
"""What tokenizers write for blanks and line ends, and what is shown of it."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model to look into, of text or of text and pictures; nothing of it changes."""

    model: Any
    processor: Any
    """Of a model of text alone, its tokenizer."""

    @classmethod
    def load(cls, folder: str | Path, device: str | None = None) -> LoadedModel:
        """Load a model as it was saved, on a GPU if there is one.

        Raises: ConfigError if transformers cannot load it
        """
        import transformers

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        # A folder is all there is of it: the hub has nothing to add.
        here: dict[str, Any] = {"local_files_only": Path(folder).is_dir()}
        try:
            config = transformers.AutoConfig.from_pretrained(folder, **here)
            if hasattr(config, "vision_config"):
                auto = transformers.AutoModelForImageTextToText
                reader = transformers.AutoProcessor
            else:
                # A tokenizer's files may name a processor that this model has not.
                auto = transformers.AutoModelForCausalLM
                reader = transformers.AutoTokenizer
            model = auto.from_pretrained(folder, dtype="auto", **here)
            processor = reader.from_pretrained(folder, **here)
        # Which errors transformers raises, changes from release to release.
        except Exception as error:
            raise ConfigError(
                f"transformers cannot load the model {folder}: {error}"
            ) from error
        if getattr(processor, "chat_template", None) is None:
            processor.chat_template = FALLBACKS.get(config.model_type)
        loaded = cls(model.to(device).eval(), processor)
        # The last token of every prompt must stand in the last column.
        loaded.tokenizer.padding_side = "left"
        if loaded.tokenizer.pad_token_id is None:
            # Nothing attends to it, so any will do.
            loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
        return loaded

    @property
    def tokenizer(self) -> Any:
        """What cuts text into tokens."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def image_token_id(self) -> int:
        """The token that stands for a patch in a prompt; -1 if there is none."""
        return families.image_token_id(self.model.config)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.model.device

    def inputs(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return a batch, padded on the left, on the model's device.

        All samples have a picture, or none has. What is not whole (``is_whole``) mixes
        the rows of several pictures.

        Raises: ConfigError, ActivationsError
        """
        pictures = [open_picture(s.picture) for s in samples if s.picture is not None]
        prompts = [sample.prompt for sample in samples]
        batch = chat_inputs(self.processor, prompts, pictures)
        inputs = self.placed(batch)
        if families.counts_positions(self.model.config):
            inputs["position_ids"] = _positions(inputs["attention_mask"])
        return inputs

    def placed(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return a processor's tensors on the model's device, numbers in its dtype."""
        dtype = self.model.dtype
        return {
            name: x.to(self.device, dtype if x.is_floating_point() else x.dtype)
            for name, x in batch.items()
            # PaliGemma's gives what it would be trained to say, too.
            if torch.is_tensor(x) and name != "labels"
        }

    def continued(
        self, batch: Mapping[str, Tensor], given: Tensor
    ) -> dict[str, Tensor]:
        """Return a batch whose prompts are followed by what is given of their answers.

        What a processor says of each token it says of those, too: they are text, and
        see of pictures what the prompt's last does (Mllama's ``cross_attention_mask``).

        Shapes: given [rows, num_given]
        """
        shape, number = batch["input_ids"].shape, given.shape[1]
        found = dict(batch)
        for name, x in batch.items():
            if x.shape[:2] != shape or x.is_floating_point():
                continue
            more = x[:, -1:].repeat_interleave(number, dim=1)
            if name == "input_ids":
                more = given.to(x)
            elif name == "token_type_ids":
                kind = families.kind_of_answers(self.model.config)
                more = torch.full_like(more, kind)
            elif x.ndim == 2:
                more = torch.full_like(more, int(name == "attention_mask"))
            found[name] = torch.cat([x, more], dim=1)
        if "position_ids" in found:
            found["position_ids"] = _positions(found["attention_mask"])
        return found

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """Return what each token reads, with blanks and line ends visible."""
        words = [str(x) for x in self.tokenizer.convert_ids_to_tokens(list(ids))]
        for mark, shown in _SHOWN.items():
            words = [word.replace(mark, shown) for word in words]
        return words

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


def _positions(mask: Tensor) -> Tensor:
    """Count what is no padding. Shapes: mask [rows, num_tokens], same out"""
    return (mask.long().cumsum(1) - 1).clamp_min(0)


def is_whole(batch: Mapping[str, Any], count: int) -> bool:
    """Say whether each of a batch's pictures is one tensor of the model's own size.

    Else it is tiles, or rows of patches, or padded to the largest (``image_sizes``).
    """
    pixels = batch.get("pixel_values")
    if pixels is None:
        return True
    return pixels.ndim == 4 and len(pixels) == count and "image_sizes" not in batch
