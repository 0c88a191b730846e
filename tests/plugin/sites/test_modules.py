# SPDX-License-Identifier: Apache-2.0
"""Where sites are found in a model, and what is refused there."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vllm_sauce.errors import (
    ConfigError,
    UnsupportedFeatureError,
    UnsupportedVLLMError,
)
from vllm_sauce.models.architectures import LAYERS, VISION_ROWS
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.own_models import MLLAMA
from vllm_sauce.plugin.sites.modules import (
    decoder_layers,
    followed,
    form_of,
    modules_at,
)


def named(name: str, *bases: type) -> Any:
    """Return a module whose class has a name of vLLM's."""
    return type(name, bases or (nn.Module,), {})()


def holding(path: str, module: nn.Module, name: str = "SomeForCausalLM") -> Any:
    """Return a model that has a module at a dotted path."""
    model = named(name)
    *outer, last = path.split(".")
    inner = model
    for part in outer:
        inner.add_module(part, nn.Module())
        inner = getattr(inner, part)
    inner.add_module(last, module)
    return model


def layers(*names: str) -> nn.ModuleList:
    return nn.ModuleList(named(name) for name in names or ("LlamaDecoderLayer",) * 2)


def config_of(architecture: str, **vision: Any) -> Any:
    return SimpleNamespace(
        architectures=[architecture],
        model_type="some",
        vision_config=SimpleNamespace(**vision),
    )


@pytest.mark.parametrize("row", VISION_ROWS.values(), ids=list(VISION_ROWS))
def test_a_rows_vision_sites_are_found(row: Any) -> None:
    config = config_of(row.model, deepstack_visual_indexes=[1, 2])
    paths = row.modules(config)
    model = named(row.vllm or row.model)
    for path in paths.values():
        *outer, last = path.split(".")
        inner = model
        for part in outer:
            if not hasattr(inner, part):
                inner.add_module(part, nn.Module())
            inner = getattr(inner, part)
        inner.add_module(last, nn.Linear(1, 1))
    found = modules_at(model, config, paths)
    assert set(found) == set(paths)
    assert all(type(one) is nn.Linear for one in found.values())
    assert len(set(map(id, found.values()))) == len(paths)


@pytest.mark.parametrize("path", ["model.layers", "language_model.model.h", "layers"])
def test_layers_are_found_wherever_they_are(path: str) -> None:
    stack = layers()
    model = holding(path, stack)
    model.add_module("others", nn.ModuleList([nn.Linear(1, 1)]))
    assert decoder_layers(model) is stack
    assert modules_at(model, None, ["decoder.1"]) == {"decoder.1": stack[1]}
    assert form_of(stack[1]) == "sum"


def test_only_the_language_model_is_searched() -> None:
    """A tower may be made of the same layers."""
    stack = layers()
    model = holding("language_model.layers", stack)
    model.add_module("tower", layers())
    model.supports_multimodal = True
    model.get_language_model = lambda: model.language_model
    assert decoder_layers(model) is stack
    model.supports_multimodal = False
    with pytest.raises(UnsupportedVLLMError, match="2 stacks of decoder layers"):
        decoder_layers(model)


def test_classes_are_matched_exactly() -> None:
    """A subclass may leave something else than the class it comes from."""
    model = holding("layers", nn.ModuleList([named("Other", type(layers()[0]))]))
    with pytest.raises(
        UnsupportedFeatureError,
        match=r"layers of Other \(SomeForCausalLM\) .*docs/models.md",
    ):
        decoder_layers(model)
    mixed = holding("layers", layers("LlamaDecoderLayer", "Other"))
    with pytest.raises(UnsupportedFeatureError, match="of LlamaDecoderLayer, Other"):
        decoder_layers(mixed)
    with pytest.raises(UnsupportedFeatureError, match="of no class"):
        decoder_layers(named("SomeForCausalLM"))


def test_layers_that_scale_their_stream_in_float16_are_refused_there() -> None:
    stack = layers("DeepseekV2DecoderLayer", "DeepseekV2DecoderLayer")
    for layer in stack:
        layer.add_module("mlp", nn.Linear(2, 2))
    model = holding("model.layers", stack)
    for dtype in (torch.float32, torch.bfloat16):
        assert decoder_layers(model.to(dtype)) is stack
    with pytest.raises(UnsupportedFeatureError, match="V2DecoderLayer .*bfloat16"):
        decoder_layers(model.half())


def test_a_part_of_a_stack_may_have_a_name_of_its_own() -> None:
    """Gemma 4 lists the layers of its first half once more."""
    stack = layers("LlamaDecoderLayer", "LlamaDecoderLayer", "LlamaDecoderLayer")
    model = holding("model.layers", stack)
    for part in (nn.ModuleList(list(stack)[:2]), nn.ModuleList(list(stack))):
        model.add_module("part", part)
        assert list(decoder_layers(model)) == list(stack)


def test_what_is_not_proven_is_refused() -> None:
    with pytest.raises(
        UnsupportedFeatureError, match=r"vision site of SomeVL .*docs/models.md"
    ):
        modules_at(named("SomeVL"), config_of("SomeVL"), ["vision"])
    llava = "LlavaForConditionalGeneration"
    with pytest.raises(UnsupportedFeatureError, match=f"runs {llava} as Transformers"):
        modules_at(named("TransformersModel"), config_of(llava), ["vision"])
    with pytest.raises(UnsupportedVLLMError, match="has no multi_modal_projector"):
        modules_at(named(llava), config_of(llava), ["vision"])


def test_what_is_not_there_is_refused() -> None:
    model = holding("model.layers", layers())
    with pytest.raises(ConfigError, match="wants decoder layer 2, the model has 2"):
        modules_at(model, None, ["decoder.2"])
    with pytest.raises(ConfigError, match="a site is 'vision' or"):
        modules_at(model, None, ["layer.0"])
    llava = "LlavaForConditionalGeneration"
    with pytest.raises(ConfigError, match=r"no site vision\.1; at its tower .* vision"):
        modules_at(named(llava), config_of(llava), ["vision.1"])


def test_vllm_has_the_models_that_the_table_names() -> None:
    from vllm.model_executor.models import ModelRegistry

    # One is the plugin's own, which it brings when it is asked for.
    assert set(VISION_ROWS) - {MLLAMA} <= set(ModelRegistry.get_supported_archs())
    assert set(LAYERS.values()) <= {"sum", "first", "single"}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., nn.Module]:
    """Makes a model of a stage between others: names of layers, "" of theirs."""
    monkeypatch.setattr(compat, "is_first_stage", lambda: False)
    monkeypatch.setattr(compat, "is_last_stage", lambda: False)
    monkeypatch.setattr(compat, "is_elsewhere", lambda one: type(one) is nn.Identity)

    def model(*names: str) -> nn.Module:
        stack = [named(name) if name else nn.Identity() for name in names]
        return holding("model.layers", nn.ModuleList(stack))

    return model


LLAMA, GEMMA = "LlamaDecoderLayer", "Gemma3DecoderLayer"


def test_a_stage_has_the_sites_of_its_layers(
    elsewhere: Callable[..., nn.Module],
) -> None:
    """By their numbers in the whole model; pictures are the first stage's."""
    model: Any = elsewhere("", LLAMA, LLAMA, "")
    sites = ["vision", *(f"decoder.{i}" for i in range(4))]
    stack = model.model.layers
    assert modules_at(model, None, sites) == {
        "decoder.1": stack[1],
        "decoder.2": stack[2],
    }
    with pytest.raises(ConfigError, match="wants decoder layer 4, the model has 4"):
        modules_at(model, None, ["decoder.4"])


def test_a_layer_is_proven_where_another_takes_what_it_leaves(
    elsewhere: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stage's last by another of its class; the model's last as it is."""
    model: Any = elsewhere("", GEMMA, LLAMA, GEMMA, LLAMA, "")
    stack = model.model.layers
    for layer in list(stack)[1:4]:
        assert followed(model, layer) is layer
    assert followed(model, stack[4]) is stack[2]
    alone: Any = elsewhere("", GEMMA, LLAMA, "")
    with pytest.raises(UnsupportedFeatureError, match="no LlamaDecoderLayer but the"):
        followed(alone, alone.model.layers[2])
    monkeypatch.setattr(compat, "is_last_stage", lambda: True)
    assert followed(alone, alone.model.layers[2]) is alone.model.layers[2]
