# SPDX-License-Identifier: Apache-2.0
"""How large a model is, from its config.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_sauce.concepts import VISION, decoder_layer_idx, is_vision
from vllm_sauce.errors import ConfigError
from vllm_sauce.files import read_object
from vllm_sauce.models.architectures import known_row
from vllm_sauce.models.families import (
    PictureSize,
    layer_parameters,
    picture_size,
    projector_parameters,
    tower_parameters,
)


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model's config.json says of its size."""

    architecture: str
    d_text: int
    layers: int
    """Of the language model."""
    text_parameters: int
    """Of the language model's layers' matrices, embeddings left out."""
    embedding_parameters: int
    d_vision: int
    """Of all vision sites; 0 without a tower."""
    vision_sites: tuple[str, ...]
    """All that pictures pass on their way to the language model."""
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
                layers=text.num_hidden_layers,
                text_parameters=layer_parameters(text, text.num_hidden_layers, gated=3),
                embedding_parameters=text.vocab_size
                * text.hidden_size
                * (1 if getattr(config, "tie_word_embeddings", False) else 2),
                d_vision=_vision_width(config) if vision else 0,
                vision_sites=_vision_sites(config) if vision else (),
                tower_parameters=tower_parameters(config) if vision else 0,
                projector_parameters=projector_parameters(config) if vision else 0,
                picture=picture_size(config),
                dtype=_dtype(config, text),
            )
        # Configs of some families raise errors of their own for what varies by layer.
        except Exception as error:
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
        """Return d_model of a site. Raises: ConfigError if there is no such site"""
        if site in self.vision_sites:
            return self.d_vision
        number = decoder_layer_idx(site)
        if number is not None and number < self.layers:
            return self.d_text
        raise _no_site(self.architecture, site, self.layers, self.vision_sites)


def check_sites(model: str | Path, sites: Sequence[str]) -> None:
    """Refuse sites that a model folder's config.json rules out.

    Those that the model lacks, and some of its vision sites without the others.

    Raises: ConfigError
    """
    config = _config(Path(model) / "config.json")
    vision = _vision_sites(config) if hasattr(config, "vision_config") else ()
    layers = config.get_text_config().num_hidden_layers
    for site in sites:
        number = decoder_layer_idx(site)
        if site not in vision and (number is None or number >= layers):
            raise _no_site(f"a {config.model_type}", site, layers, vision)
    missed = [site for site in vision if site not in sites]
    if missed and any(map(is_vision, sites)):
        raise ConfigError(
            f"a {config.model_type} hands on several layers of its tower; pictures "
            f"would go around an edit that leaves out {', '.join(missed)}: give all of "
            "these sites, or decoder layers alone"
        )


def _no_site(model: str, site: str, layers: int, vision: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{model} has no site {site!r}: it has decoder.0 to decoder.{layers - 1}, and "
        f"{', '.join(vision) or 'no vision tower'}"
    )


def _vision_width(config: Any) -> int:
    row = known_row(config)
    return row.width(config) if row else int(config.vision_config.hidden_size)


def _vision_sites(config: Any) -> tuple[str, ...]:
    row = known_row(config)
    return tuple(row.modules(config)) if row else (VISION,)


def _config(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        raw = read_object(path, ConfigError)
    except (OSError, ConfigError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}; --model is the folder of a model, which "
            "holds its config.json"
        ) from error
    if "model_type" not in raw:
        raise ConfigError(f"{path} is no model's config.json: it has no model_type")
    try:
        return AutoConfig.from_pretrained(path.parent, local_files_only=True)
    # transformers checks fields with classes of errors that differ by release.
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"transformers refuses {path}: {reason[0]}") from error


def _dtype(config: Any, text: Any) -> str:
    for one in (text, config):
        named = str(getattr(one, "dtype", None)).removeprefix("torch.")
        if named in ("float32", "bfloat16", "float16"):
            return named
    return "bfloat16"
