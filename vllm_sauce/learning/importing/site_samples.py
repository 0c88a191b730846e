# SPDX-License-Identifier: Apache-2.0
"""A few activations of the actual model at a site and at its other layers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vllm_sauce.concepts import VISION, check_site, decoder_layer_idx
from vllm_sauce.data.pictures import SUFFIXES, picture_files
from vllm_sauce.data.samples import PictureFile, open_picture
from vllm_sauce.errors import ConfigError, PictureError, SauceError
from vllm_sauce.files import read_lines
from vllm_sauce.models.chat_prompts import chat_inputs
from vllm_sauce.models.site_hooks import decoder_layers, site_hook

_logger = logging.getLogger(__name__)

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
    model, processor = _load(model_dir)
    try:
        return _sampled(model, processor, site, texts, pictures)
    except SauceError:
        raise
    except Exception as error:
        # Processors and models of all kinds run here; each fails in its own way.
        raise ConfigError(
            f"the model at {model_dir} could not be run on the inputs: "
            f"{type(error).__name__}: {error}; give its activations with --activations"
        ) from error


def _sampled(
    model: Any,
    processor: Any,
    site: str,
    texts: Sequence[str] | None,
    pictures: Sequence[Any] | None,
) -> dict[str, Tensor]:
    sites = sites_compared(site, len(decoder_layers(model)))
    kept: dict[str, list[Tensor]] = {name: [] for name in sites}
    first = 0 if site == VISION else 1
    inputs = pictures or (drawn_pictures() if site == VISION else texts or TEXTS)
    most = -(-MOST_TOKENS // len(inputs))

    def keep(name: str, x: Tensor) -> Tensor:
        rows = torch.linspace(first, x.shape[1] - 1, min(x.shape[1] - first, most))
        some = x[:, rows.long().to(x.device)]
        kept[name].append(some.detach().float().flatten(0, -2).cpu())
        return x

    with ExitStack() as hooks, torch.inference_mode():
        for name in sites:
            hooks.enter_context(site_hook(model, name, partial(keep, name)))
        if site == VISION:
            shown = _shown(model, processor, inputs)
            model.get_image_features(**shown)
            for layer in _tower_neighbours(model):
                model.get_image_features(**shown, vision_feature_layer=layer)
                kept[f"{VISION} (tower layer {layer})"] = [kept[VISION].pop()]
        else:
            _read(model, processor, texts or TEXTS, pictures or ())
    return {name: _whole(torch.cat(parts), name) for name, parts in kept.items()}


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
    try:
        lines = read_lines(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} holds no texts: {error}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise ConfigError(f"{path} holds no texts: it is empty")
    return texts[:MOST_TEXTS]


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
            _logger.warning(f"left out: {error}")
    if not pictures:
        raise ConfigError(
            f"{folder} holds no pictures that can be read ({', '.join(SUFFIXES)})"
        )
    return pictures


def drawn_pictures(count: int = 8, size: int = 336) -> list[Any]:
    """Draw pictures of coloured shapes on gradients, the same every time."""
    from PIL import Image, ImageDraw

    colours = ("red", "green", "blue", "yellow", "white", "black", "orange", "purple")
    drawn = []
    for i in range(count):
        ramp = Image.linear_gradient("L").resize((size, size)).rotate(90 * (i % 4))
        picture = Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))
        draw = ImageDraw.Draw(picture)
        for j in range(3):
            left, top = (
                (37 * i + 101 * j) % (size // 2),
                (53 * i + 83 * j) % (size // 2),
            )
            box = (left, top, left + size // (2 + j), top + size // 3)
            colour = colours[(i + 3 * j) % len(colours)]
            (draw.ellipse if (i + j) % 2 else draw.rectangle)(box, fill=colour)
        drawn.append(picture)
    return drawn


def _load(model_dir: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            model_dir, dtype="auto", local_files_only=True
        )
        processor = AutoProcessor.from_pretrained(model_dir, local_files_only=True)
    except Exception as error:
        # Which errors transformers raises, changes from release to release.
        raise ConfigError(
            f"transformers cannot load the model at {model_dir}: {error}; "
            "give its activations with --activations"
        ) from error
    return model.to(device).eval(), processor


def _shown(model: Any, processor: Any, pictures: Sequence[Any]) -> dict[str, Any]:
    inputs = processor.image_processor(images=list(pictures), return_tensors="pt")
    accepted = inspect.signature(model.get_image_features).parameters
    known = {name: x for name, x in inputs.items() if name in accepted}
    return _on_device(known, model)


def _tower_neighbours(model: Any) -> list[int]:
    """Return the tower's layers around the one that the projector reads."""
    layer = getattr(model.config, "vision_feature_layer", None)
    accepted = inspect.signature(model.get_image_features).parameters
    if "vision_feature_layer" not in accepted or not isinstance(layer, int):
        return []
    num_layers = model.config.vision_config.num_hidden_layers
    end = 0 if layer < 0 else num_layers + 1
    near = range(layer - TOWER_NEIGHBOURS, layer + TOWER_NEIGHBOURS + 1)
    return [i for i in near if i != layer and end - num_layers - 1 <= i < end]


def _read(
    model: Any, processor: Any, texts: Sequence[str], pictures: Sequence[Any]
) -> None:
    if not pictures:
        for text in texts:
            inputs = processor.tokenizer(text, return_tensors="pt")
            model(input_ids=inputs["input_ids"].to(model.device))
        return
    for i, picture in enumerate(pictures):
        inputs = chat_inputs(processor, [texts[i % len(texts)]], [picture])
        model(**_on_device(inputs, model))


def _on_device(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    return {
        name: x.to(model.device, model.dtype)
        if torch.is_tensor(x) and x.is_floating_point()
        else x.to(model.device)
        for name, x in inputs.items()
    }


def _whole(x: Tensor, name: str) -> Tensor:
    if x.ndim != 2 or len(x) < 2 or not bool(torch.isfinite(x).all()):
        raise ConfigError(
            f"activations at {name} must be at least two rows of finite numbers, "
            f"got {list(x.shape)}"
        )
    return x
