# SPDX-License-Identifier: Apache-2.0
"""A few activations of the actual model at a site and at its other layers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vllm_sauce.concepts import VISION, check_site, decoder_layer_idx, is_vision
from vllm_sauce.data.pictures import SUFFIXES, picture_files
from vllm_sauce.data.sample_sources import text_samples
from vllm_sauce.data.samples import PictureFile, open_picture
from vllm_sauce.errors import ConfigError, PictureError, SauceError, warn
from vllm_sauce.models.chat_prompts import chat_inputs
from vllm_sauce.models.families import (
    decoder_layers,
    picture_encoder,
    tower_layers_near,
)
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.site_hooks import site_hook

TOWER_NEIGHBOURS: Final = 2
"""Layers of the tower on either side that are looked at; each costs a run of it."""

MOST_TOKENS: Final = 1024
"""Activations kept, spread evenly over the inputs: all layers' must fit in memory."""

MOST_PICTURES: Final = 16
MOST_TEXTS: Final = 64

TEXTS: Final = (
    "The harbour was quiet that morning, and only two boats had left before sunrise.",
    "Water boils at a lower temperature on a mountain because the air is thinner.",
    "She asked the shopkeeper whether the red bicycle in the window was for sale.",
    "In 1969 three people flew to the moon, and two of them walked on it.",
    "A good recipe for bread needs flour, water, salt, yeast and a lot of patience.",
    "def area(width, height):\n    return width * height",
    "The dog ran across the field, jumped over the fence and barked at the train.",
    "Question: which animal in the picture is the largest? Answer: the elephant.",
)
"""What a decoder site is sampled on unless the user gives texts."""


def sample_activations(
    model_dir: Path,
    site: str,
    texts: Sequence[str] | None = None,
    pictures: Sequence[Any] | None = None,
) -> dict[str, Tensor]:
    """Run a model over a few inputs; returns activations by site, other layers too.

    A decoder site sees the texts, each with a picture if there are any; the vision
    site sees the pictures. The first token of every input is left out: its activation
    is many times larger than all others in most models and would be all the variance.

    Shapes: -> [num_tokens, d_model] each
    Raises: ConfigError
    """
    try:
        loaded = LoadedModel.load(model_dir)
    except ConfigError as error:
        raise ConfigError(f"{error}; give its activations with --activations") from None
    try:
        return _sampled(loaded, site, texts, pictures)
    except SauceError:
        raise
    except Exception as error:
        # Processors and models of all kinds run here; each fails in its own way.
        raise ConfigError(
            f"the model at {model_dir} could not be run on the inputs: "
            f"{type(error).__name__}: {error}; give its activations with --activations"
        ) from error


def _sampled(
    loaded: LoadedModel,
    site: str,
    texts: Sequence[str] | None,
    pictures: Sequence[Any] | None,
) -> dict[str, Tensor]:
    model = loaded.model
    sites = sites_compared(site, len(decoder_layers(model)))
    kept: dict[str, list[Tensor]] = {name: [] for name in sites}
    first = 0 if is_vision(site) else 1
    inputs = pictures or (drawn_pictures() if is_vision(site) else texts or TEXTS)
    most = -(-MOST_TOKENS // len(inputs))
    shown = _shown(loaded, inputs) if is_vision(site) else {}
    tiles = shown.get("aspect_ratio_mask")  # of Llama 3.2 Vision: which fill up

    def keep(name: str, features: Tensor) -> Tensor:
        x, count = features, most
        if is_vision(name):
            # [pictures or tiles, patches, d_model], or all rows in one list.
            x = features if tiles is None else features[tiles.bool()]
            x = x if x.dim() == 3 else x.flatten(0, -2)[None]
            count = -(-MOST_TOKENS // len(x))
        rows = torch.linspace(first, x.shape[1] - 1, min(x.shape[1] - first, count))
        some = x[:, rows.long().to(x.device)]
        kept[name].append(some.detach().float().flatten(0, -2).cpu())
        return features

    with ExitStack() as hooks, torch.inference_mode():
        for name in sites:
            hooks.enter_context(site_hook(model, name, partial(keep, name)))
        if is_vision(site):
            encode = picture_encoder(model)
            encode(**shown)
            for layer in tower_layers_near(model, TOWER_NEIGHBOURS):
                encode(**shown, vision_feature_layer=layer)
                kept[f"{VISION} (tower layer {layer})"] = [kept[VISION].pop()]
        else:
            _read(loaded, texts or TEXTS, pictures or ())
    if not kept[site]:
        raise ConfigError(f"texts alone do not reach {site}; show pictures, too")
    # Of Llama 3.2 Vision layers that attend to pictures read nothing without any.
    return {n: _whole(torch.cat(parts), n) for n, parts in kept.items() if parts}


def sites_compared(site: str, num_layers: int) -> tuple[str, ...]:
    """Return the sites that are read in one run: of a decoder site, every layer.

    Raises: ConfigError if the model has no such layer
    """
    layer_idx = decoder_layer_idx(check_site(site))
    if layer_idx is None:
        return (site,)
    if layer_idx >= num_layers:
        raise ConfigError(f"the model has {num_layers} decoder layers, no {site}")
    return tuple(f"decoder.{i}" for i in range(num_layers))


def read_activations(path: Path, site: str) -> dict[str, Tensor]:
    """Read activations from a safetensors file.

    Its tensors are named by site, or there is one, of any name, for the site asked for.

    Shapes: [..., d_model] -> [num_tokens, d_model] each
    Raises: ConfigError
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} holds no activations: {error}") from error
    if site not in tensors and len(tensors) == 1:
        tensors = {site: next(iter(tensors.values()))}
    if site not in tensors:
        raise ConfigError(
            f"{path} must hold one tensor, or one called {site}; "
            f"got {', '.join(sorted(tensors)) or 'none'}"
        )
    return {
        name: _whole(x.float().flatten(0, -2) if x.ndim > 2 else x.float(), name)
        for name, x in tensors.items()
    }


def read_texts(path: Path) -> list[str]:
    """Read texts, one a line.

    Raises: ConfigError
    """
    return [sample.prompt for sample in text_samples(path)[:MOST_TEXTS]]


def read_pictures(folder: Path) -> list[Any]:
    """Read a folder's first pictures, by name; warns of those that cannot be read.

    Raises: ConfigError
    """
    try:
        files = picture_files(folder)
    except OSError as error:
        raise ConfigError(f"{folder} holds no pictures: {error}") from error
    pictures: list[Any] = []
    for file in files:
        if len(pictures) == MOST_PICTURES:
            break
        try:
            pictures.append(open_picture(PictureFile(file)))
        except PictureError as error:
            warn(f"left out: {error}")
    if not pictures:
        raise ConfigError(
            f"{folder} holds no pictures that can be read ({', '.join(SUFFIXES)})"
        )
    return pictures


def drawn_pictures() -> list[Any]:
    """Draw pictures of coloured shapes on gradients, the same every time."""
    from PIL import Image, ImageDraw

    colours = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
    drawn, size = [], 336
    for i in range(8):
        ramp = Image.linear_gradient("L").resize((size, size)).rotate(90 * (i % 4))
        picture = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))
        draw = ImageDraw.Draw(picture)
        for j in range(3):
            left = (37 * i + 101 * j) % (size // 2)
            top = (53 * i + 83 * j) % (size // 2)
            box = (left, top, left + size // (2 + j), top + size // 3)
            colour = colours[(i + 3 * j) % len(colours)]
            (draw.ellipse if (i + j) % 2 else draw.rectangle)(box, fill=colour)
        drawn.append(picture)
    return drawn


def _shown(loaded: LoadedModel, pictures: Sequence[Any]) -> dict[str, Any]:
    images = loaded.processor.image_processor
    inputs = images(images=list(pictures), return_tensors="pt")
    accepted = inspect.signature(picture_encoder(loaded.model)).parameters
    return loaded.placed({name: x for name, x in inputs.items() if name in accepted})


def _read(loaded: LoadedModel, texts: Sequence[str], pictures: Sequence[Any]) -> None:
    if not pictures:
        for text in texts:
            inputs = loaded.tokenizer(text, return_tensors="pt")
            loaded.model(input_ids=inputs["input_ids"].to(loaded.device))
        return
    for i, picture in enumerate(pictures):
        inputs = chat_inputs(loaded.processor, [texts[i % len(texts)]], [picture])
        loaded.model(**loaded.placed(inputs))


def _whole(x: Tensor, name: str) -> Tensor:
    if x.ndim != 2 or len(x) < 2 or not bool(torch.isfinite(x).all()):
        raise ConfigError(
            f"activations at {name} must be at least two rows of finite numbers, "
            f"got {list(x.shape)}"
        )
    return x
