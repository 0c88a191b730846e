# SPDX-License-Identifier: Apache-2.0
"""The modules of a vLLM model that its sites are at, by the table of architectures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from vllm_sauce.concepts import check_site, decoder_layer_idx, is_vision
from vllm_sauce.errors import (
    ConfigError,
    UnsupportedFeatureError,
    UnsupportedVLLMError,
)
from vllm_sauce.models.architectures import (
    LAYERS,
    NOT_IN_FLOAT16,
    TRANSFORMERS,
    WHERE,
    Form,
    vision_row,
)
from vllm_sauce.plugin import compat


def modules_at(model: Any, hf_config: Any, sites: Iterable[str]) -> dict[str, Any]:
    """Return the one module that each site is at, of the sites in this rank's stage.

    Raises: ConfigError for a site that the model does not have,
        UnsupportedFeatureError where it is not proven, UnsupportedVLLMError.
    """
    wanted = [check_site(site) for site in sites]
    towers = [site for site in wanted if is_vision(site)]
    found = {}
    if towers and compat.is_first_stage():
        found = _connectors(model, hf_config, towers)
    layers = decoder_layers(model) if len(towers) < len(wanted) else ()
    for site in wanted:
        layer_idx = decoder_layer_idx(site)
        if layer_idx is None:
            continue
        if layer_idx >= len(layers):
            raise ConfigError(
                f"site {site} wants decoder layer {layer_idx}, the model has "
                f"{len(layers)}"
            )
        if not compat.is_elsewhere(layers[layer_idx]):
            found[site] = layers[layer_idx]
    return found


def form_of(layer: Any) -> Form:
    """Return what of a layer's output is the stream; one whose class is listed."""
    return getattr(layer, "sauce_form", None) or LAYERS[class_of(layer)]


def _connectors(model: Any, hf_config: Any, sites: Iterable[str]) -> dict[str, Any]:
    row = vision_row(hf_config)
    name = type(model).__name__
    if name != (row.vllm or row.model):
        raise UnsupportedFeatureError(
            f"the vision site is proven for vLLM's {row.vllm or row.model}; this vLLM "
            f"runs {row.model} as {name}; {WHERE}"
        )
    paths = row.modules(hf_config)
    modules = {site: _at(model, site, paths) for site in sites}
    for site, module in modules.items():
        if not isinstance(module, nn.Module):
            raise UnsupportedVLLMError(
                f"{name} has no {paths[site]}, which site {site} is at; this vLLM "
                "is not one that sauce knows"
            )
    return modules


def _at(model: Any, site: str, paths: Mapping[str, str]) -> Any:
    if site not in paths:
        raise ConfigError(
            f"the model has no site {site}; at its tower it has {', '.join(paths)}"
        )
    for name in paths[site].split("."):
        model = getattr(model, name, None)
    return model


def decoder_layers(model: Any) -> Any:
    """Return the language model's stack of layers, each of a class in the table.

    Layers of other stages have their places in it.

    Raises: UnsupportedFeatureError, UnsupportedVLLMError
    """
    shows = getattr(model, "supports_multimodal", False)
    inner = model.get_language_model() if shows else model
    stacks = [one for one in _stacks(inner) if _is_listed(one)]
    # A part of a stack may have a name of its own.
    stacks = [one for one in stacks if not any(_within(one, it) for it in stacks)]
    if len(stacks) == 1:
        _check_dtype(stacks[0])
        return stacks[0]
    name = type(model).__name__
    if stacks:
        raise UnsupportedVLLMError(
            f"{name} has {len(stacks)} stacks of decoder layers, so 'decoder.<layer>' "
            "names none"
        )
    longest = max(_stacks(inner), key=len, default=())
    classes = dict.fromkeys(map(class_of, longest))
    raise UnsupportedFeatureError(
        f"decoder layers of {', '.join(classes) or 'no class'} ({name}) are not "
        f"proven: the table of architectures does not list them; {WHERE}"
    )


def _check_dtype(layers: nn.ModuleList) -> None:
    scaled = NOT_IN_FLOAT16 & set(map(class_of, layers))
    dtypes = {one.dtype for one in layers.parameters()}
    if scaled and torch.float16 in dtypes:
        raise UnsupportedFeatureError(
            f"{', '.join(sorted(scaled))} scales its stream in float16, which no SAE "
            "was made for; serve it with --dtype bfloat16"
        )


def _stacks(model: Any) -> list[nn.ModuleList]:
    found = [one for one in model.modules() if isinstance(one, nn.ModuleList)]
    return [one for one in found if len(one)]


def _within(one: nn.ModuleList, other: nn.ModuleList) -> bool:
    inner, outer = ({id(layer) for layer in stack} for stack in (one, other))
    return inner < outer or (inner == outer and id(one) > id(other))


def table_name(cls: type) -> str:
    """Return what the table calls a class: vLLM may run transformers' own layers."""
    own = cls.__module__.partition(".")[0] == TRANSFORMERS
    return f"{TRANSFORMERS}.{cls.__name__}" if own else cls.__name__


def class_of(layer: Any) -> str:
    """Return what the table calls a layer's class, also once it is a site's."""
    own = (cls for cls in type(layer).__mro__ if not hasattr(cls, "sauce_form"))
    return table_name(next(own))


def _is_listed(stack: nn.ModuleList) -> bool:
    here = [layer for layer in stack if not compat.is_elsewhere(layer)]
    return bool(here) and all(class_of(layer) in LAYERS for layer in here)


def followed(model: Any, layer: Any) -> Any:
    """Return a layer, or, if it is a stage's last, one of its class that is not.

    Raises: UnsupportedFeatureError where there is none
    """
    if compat.is_last_stage():
        return layer
    stack = [one for one in decoder_layers(model) if not compat.is_elsewhere(one)]
    if layer is not stack[-1]:
        return layer
    for other in stack[:-1]:
        if class_of(other) == class_of(layer):
            return other
    raise UnsupportedFeatureError(
        f"a stage of the pipeline holds no {class_of(layer)} but the edited one at its "
        "end, so how that leaves its stream cannot be proven; take a smaller "
        "--pipeline-parallel-size"
    )
