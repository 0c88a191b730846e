# SPDX-License-Identifier: Apache-2.0
"""Sites of a transformers model: read and edit what passes there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.concepts import VISION, decoder_layer_idx, is_vision
from vllm_sauce.errors import ConfigError
from vllm_sauce.models.families import connector, decoder_layers

SiteFn = Callable[[Tensor], Tensor]
"""Takes a site's activations [..., d_model] and returns what replaces them."""


@contextmanager
def site_hook(model: Any, site: str, fn: SiteFn) -> Iterator[None]:
    """Pass a site's activations through ``fn`` while the context is open.

    Raises: ConfigError if the model has no such site
    """
    if is_vision(site):
        handle = connector(model, site).register_forward_pre_hook(
            lambda module, args, kwargs: _on_first(fn, args, kwargs), with_kwargs=True
        )
    else:
        layer_idx = decoder_layer_idx(site)
        layers = decoder_layers(model)
        if layer_idx is None or layer_idx >= len(layers):
            raise ConfigError(f"the model has {len(layers)} decoder layers, no {site}")
        handle = layers[layer_idx].register_forward_hook(
            lambda module, args, out: (
                (fn(out[0]), *out[1:]) if isinstance(out, tuple) else fn(out)
            )
        )
    try:
        yield
    finally:
        handle.remove()


def _on_first(
    fn: SiteFn, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace the first that a module is called with, by position or by name."""
    if args:
        return (fn(args[0]), *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, {**kwargs, name: fn(kwargs[name])}


@torch.inference_mode()
def vision_features(model: Any, pixel_values: Tensor) -> Tensor:
    """Return the vision site's activations of many pictures.

    Shapes: pixel_values [num_pictures, 3, H, W] -> [num_pictures, patches, d_model]
    """
    kept: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.float().clone())
        return x

    with site_hook(model, VISION, keep):
        for pixels in pixel_values.split(256):
            model.get_image_features(pixel_values=pixels)
    return torch.cat(kept)
