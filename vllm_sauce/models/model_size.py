# SPDX-License-Identifier: Apache-2.0
"""How large a model is, and what a picture is to it, from its config.json alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_sauce.concepts import VISION
from vllm_sauce.errors import ConfigError


@dataclass(frozen=True, slots=True)
class PictureSize:
    """What one picture is to a model; of tiled models, one that fills all tiles."""

    patches: int
    """Rows at the vision site."""
    tower_tokens: int
    """What its tower reads: patches, and a class token a tile where there is one."""
    prompt_tokens: int
    """What it takes in a prompt."""
    tiled: bool = False
    """Whether pictures of other shapes take less."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model's config.json says of its size."""

    architecture: str
    d_text: int
    text_parameters: int
    """Of the language model's layers' matrices, embeddings left out."""
    embedding_parameters: int
    d_vision: int
    """0 without a tower."""
    tower_parameters: int
    """Of the matrices of the tower's layers that are run."""
    projector_parameters: int
    """Of the matrices that every patch passes after the tower."""
    picture: PictureSize
    dtype: str
    """Of the weights: "float32", "bfloat16" or "float16"."""

    @classmethod
    def read(cls, model: str | Path) -> ModelSize:
        """Read a model folder's config.json; no weights are needed.

        What the file leaves out is its model type's default in transformers.

        Raises: ConfigError
        """
        config = _config(Path(model) / "config.json")
        text = config.get_text_config()
        vision = getattr(config, "vision_config", None)
        try:
            return cls(
                architecture=next(iter(config.architectures or ()), config.model_type),
                d_text=text.hidden_size,
                text_parameters=layer_parameters(text, text.num_hidden_layers, gated=3),
                embedding_parameters=text.vocab_size
                * text.hidden_size
                * (1 if config.tie_word_embeddings else 2),
                d_vision=vision.hidden_size if vision else 0,
                tower_parameters=_tower(config, vision) if vision else 0,
                projector_parameters=_projector(config, vision) if vision else 0,
                picture=picture_size(config),
                dtype=_dtype(config, text),
            )
        except (AttributeError, TypeError, ZeroDivisionError) as error:
            raise ConfigError(
                f"{Path(model) / 'config.json'} does not say how large a "
                f"{config.model_type} this is: {error}"
            ) from error

    @property
    def parameters(self) -> int:
        """Numbers in all matrices."""
        return (
            self.text_parameters
            + self.embedding_parameters
            + self.tower_parameters
            + self.projector_parameters
        )

    @property
    def picture_operations(self) -> float:
        """Multiplications and additions of one picture up to the language model."""
        picture = self.picture
        tower = picture.tower_tokens * self.tower_parameters
        return 2.0 * (tower + picture.patches * self.projector_parameters)

    def width(self, site: str) -> int:
        """Return d_model of a site."""
        return self.d_vision if site == VISION else self.d_text


def _config(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}; --model is the folder of a model, which "
            "holds its config.json"
        ) from error
    if not isinstance(raw, dict) or "model_type" not in raw:
        raise ConfigError(f"{path} is no model's config.json: it has no model_type")
    try:
        return AutoConfig.from_pretrained(path.parent, local_files_only=True)
    # transformers checks fields with classes of errors that differ by release.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"transformers refuses {path}: {reason[0]}") from error


def layer_parameters(config: Any, layers: int, *, gated: int = 2) -> int:
    """Return the numbers in the matrices of a transformer's layers.

    ``gated``: matrices of its feed-forward part, three with a gate.
    """
    d_model, heads = config.hidden_size, config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or d_model // heads
    attention = 2 * d_model * head_dim * (heads + kv_heads)
    return int(layers * (attention + gated * d_model * config.intermediate_size))


def _tower(config: Any, vision: Any) -> int:
    """Count the layers up to the one that is read, which are all that vLLM builds."""
    read = getattr(config, "vision_feature_layer", None)
    layers = vision.num_hidden_layers
    if read is not None:
        chosen: Iterable[int] = read if isinstance(read, list | tuple) else (read,)
        # -1 is after the last layer; 0 would be before the first.
        layers = max(i if i >= 0 else layers + 1 + i for i in chosen)
    return layer_parameters(vision, layers)


def _projector(config: Any, vision: Any) -> int:
    """Two matrices in LLaVA; Gemma's single one is for few tokens, and left out."""
    if config.model_type not in ("llava", "llava_next"):
        return 0
    d_text = config.get_text_config().hidden_size
    return int(d_text * (vision.hidden_size + d_text))


def picture_size(config: Any) -> PictureSize:
    """Return what one picture is to a model, by its model_type.

    - llava: its patches, all of them in the prompt.
    - llava_next: the whole picture and up to five tiles, the tiles' rows of patches
      each with a newline token.
    - gemma3: patches pooled to ``mm_tokens_per_image``, pan-and-scan off; a token
      before and one after them.
    - others: as llava.

    Source: transformers' LlavaNextProcessor._get_number_of_features and Gemma3Processor
    """
    vision: Any = getattr(config, "vision_config", None)
    size, patch = (getattr(vision, n, None) for n in ("image_size", "patch_size"))
    if not isinstance(size, int) or not isinstance(patch, int):
        return PictureSize(0, 0, 0)
    side = size // patch
    patches = side * side
    if config.model_type == "gemma3":
        return PictureSize(patches, patches, config.mm_tokens_per_image + 2)
    # CLIP's class token is read by the tower and dropped after it.
    classes = int(vision.model_type == "clip_vision_model")
    if config.model_type != "llava_next":
        return PictureSize(patches, patches + classes, patches)
    shapes = [
        (high // size, wide // size) for high, wide in config.image_grid_pinpoints
    ]
    tiles = 1 + max(high * wide for high, wide in shapes)
    prompt = max(patches + high * side * (wide * side + 1) for high, wide in shapes)
    return PictureSize(tiles * patches, tiles * (patches + classes), prompt, tiled=True)


def _dtype(config: Any, text: Any) -> str:
    for one in (text, config):
        named = str(getattr(one, "dtype", None)).removeprefix("torch.")
        if named in ("float32", "bfloat16", "float16"):
            return named
    return "bfloat16"
