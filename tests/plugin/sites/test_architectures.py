# SPDX-License-Identifier: Apache-2.0
"""Where sites are found, and what is refused there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sauce.errors import (
    ConfigError,
    UnsupportedFeatureError,
    UnsupportedVLLMError,
)
from vllm_sauce.plugin.sites.architectures import (
    ARCHITECTURES,
    Architecture,
    module_at,
    register,
    with_vision,
)


def named(name: str, *bases: type, **attributes: Any) -> Any:
    """Return an object whose class has a name of vLLM's."""
    return type(name, bases or (SimpleNamespace,), {})(**attributes)


def layers(name: str = "LlamaDecoderLayer", count: int = 2) -> list[Any]:
    return [named(name) for _ in range(count)]


def holding(path: str, value: Any, name: str = "SomeForCausalLM") -> Any:
    """Return a model that has a value at a dotted path."""
    *outer, last = path.split(".")
    inner: Any = SimpleNamespace(**{last: value})
    for part in reversed(outer):
        inner = SimpleNamespace(**{part: inner})
    return named(name, **vars(inner))


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_a_rows_sites_are_found(row: Architecture) -> None:
    stack = layers(row.layer)
    model = holding(row.layers, stack, row.model)
    assert module_at(model, "decoder.1") is stack[1]
    if row.vision:
        setattr(model, row.vision, "the connector")
        assert module_at(model, "vision") == "the connector"


@pytest.mark.parametrize("path", ["model.layers", "language_model.model.layers"])
def test_any_model_of_proven_layers_is_taken(path: str) -> None:
    """Mistral's layer is a subclass of Llama's, LLaVA-NeXT holds Llama's."""
    stack = [named("MistralDecoderLayer", type(layers()[0]))]
    assert module_at(holding(path, stack), "decoder.0") is stack[0]


def test_what_is_not_proven_is_refused() -> None:
    model = holding("model.layers", layers("PhiDecoderLayer"))
    with pytest.raises(UnsupportedFeatureError, match="PhiDecoderLayer are not proven"):
        module_at(model, "decoder.0")
    for name in ("SomeForCausalLM", "Gemma3ForConditionalGeneration"):
        with pytest.raises(UnsupportedFeatureError, match=f"not proven for {name}"):
            module_at(named(name), "vision")


def test_what_is_not_there_is_refused() -> None:
    model = holding("model.layers", layers())
    with pytest.raises(ConfigError, match="wants decoder layer 2, the model has 2"):
        module_at(model, "decoder.2")
    with pytest.raises(ConfigError, match="a site is 'vision' or"):
        module_at(model, "layer.0")
    with pytest.raises(UnsupportedVLLMError, match="cannot find the decoder layers"):
        module_at(named("SomeForCausalLM"), "decoder.0")


def test_a_model_has_one_row() -> None:
    row = ARCHITECTURES["LlamaForCausalLM"]
    with pytest.raises(ConfigError, match="has a row of sites already"):
        register(row)
    assert ARCHITECTURES["LlamaForCausalLM"] is row
    assert with_vision() == ("LlavaForConditionalGeneration",)


@pytest.mark.parametrize("row", ARCHITECTURES.values(), ids=list(ARCHITECTURES))
def test_vllm_has_what_a_row_names(row: Architecture) -> None:
    from vllm.model_executor.models import ModelRegistry
    from vllm.model_executor.models.gemma3 import Gemma3DecoderLayer
    from vllm.model_executor.models.llama import LlamaDecoderLayer

    assert row.model in ModelRegistry.get_supported_archs()
    assert row.layer in {
        cls.__name__ for cls in (Gemma3DecoderLayer, LlamaDecoderLayer)
    }
