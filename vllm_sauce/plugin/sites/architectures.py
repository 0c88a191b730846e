# SPDX-License-Identifier: Apache-2.0
"""Where the sites of vLLM's models are, and for which models that is proven.

A new architecture is a row here; ``docs/architecture.md`` says what to prove first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vllm_sauce.concepts import VISION, check_site, decoder_layer_idx
from vllm_sauce.errors import (
    ConfigError,
    UnsupportedFeatureError,
    UnsupportedVLLMError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A model of vLLM's whose sites were compared with transformers."""

    model: str
    """vLLM's class, which a model's config.json names."""

    layers: str
    """Path of the decoder's layers."""

    layer: str
    """Class of a layer. It and its subclasses return ``(hidden_states, residual)``,
    whose sum is the residual stream, and are proven in any model that holds them."""

    vision: str | None = None
    """Path of the module whose first tensor is the vision tower's output, one block of
    rows for each picture; None: no vision site is proven."""


ARCHITECTURES: dict[str, Architecture] = {}


def register(row: Architecture) -> None:
    """Add a row. Raises: ConfigError for a model that has one."""
    if row.model in ARCHITECTURES:
        raise ConfigError(f"{row.model} has a row of sites already; change that one")
    ARCHITECTURES[row.model] = row


register(
    Architecture(
        model="LlavaForConditionalGeneration",
        layers="language_model.model.layers",
        layer="LlamaDecoderLayer",
        vision="multi_modal_projector",
    )
)
register(
    Architecture(
        model="LlamaForCausalLM", layers="model.layers", layer="LlamaDecoderLayer"
    )
)
register(
    Architecture(
        model="Gemma3ForConditionalGeneration",
        layers="language_model.model.layers",
        layer="Gemma3DecoderLayer",
    )
)
register(
    Architecture(
        model="Gemma3ForCausalLM", layers="model.layers", layer="Gemma3DecoderLayer"
    )
)


def with_vision() -> tuple[str, ...]:
    """Return the models whose vision site is proven."""
    return tuple(name for name, row in ARCHITECTURES.items() if row.vision)


def module_at(model: Any, site: str) -> Any:
    """Return the one module of a model that a site is at.

    Raises: ConfigError for a layer that the model does not have,
        UnsupportedFeatureError where the site is not proven, UnsupportedVLLMError.
    """
    check_site(site)
    if site == VISION:
        row = ARCHITECTURES.get(type(model).__name__)
        if row is None or row.vision is None:
            raise UnsupportedFeatureError(
                f"the vision site is not proven for {type(model).__name__}; "
                f"supported: {', '.join(with_vision())}"
            )
        return _at(model, row.vision)
    layers, layer_idx = _decoder_layers(model), decoder_layer_idx(site)
    if layer_idx is None or layer_idx >= len(layers):
        raise ConfigError(
            f"site {site} wants decoder layer {layer_idx}, the model has {len(layers)}"
        )
    proven = dict.fromkeys(row.layer for row in ARCHITECTURES.values())
    if not any(cls.__name__ in proven for cls in type(layers[layer_idx]).__mro__):
        raise UnsupportedFeatureError(
            f"decoder layers of type {type(layers[layer_idx]).__name__} are not "
            f"proven; supported: {', '.join(proven)}"
        )
    return layers[layer_idx]


def _decoder_layers(model: Any) -> Any:
    for path in _paths(type(model).__name__):
        if (found := _at(model, path)) is not None:
            return found
    raise UnsupportedVLLMError(
        f"cannot find the decoder layers of {type(model).__name__}; sauce edits models "
        "with `model.layers` or `language_model.model.layers`"
    )


def _paths(model: str) -> Iterator[str]:
    """Yield where to look: at a model's own place, then at all others.

    Many models hold another's layers.
    """
    if model in ARCHITECTURES:
        yield ARCHITECTURES[model].layers
    yield from dict.fromkeys(row.layers for row in ARCHITECTURES.values())


def _at(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name, None)
    return model
