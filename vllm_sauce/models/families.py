# SPDX-License-Identifier: Apache-2.0
"""What differs between architectures in transformers: names of parts, tokens, tiles."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from torch import nn

from vllm_sauce.concepts import VISION
from vllm_sauce.errors import ConfigError
from vllm_sauce.models.architectures import vision_row


def language_model(model: Any) -> Any:
    """Return the decoder without its head: all there is of a model of text alone."""
    return getattr(model.model, "language_model", model.model)


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the language model's layers; ``decoder.<i>`` is the output of the i-th.

    Raises: ConfigError
    """
    decoder = model.get_decoder()
    # A language model with its head is one more step down.
    for holder in (decoder, getattr(decoder, "model", None)):
        for name in ("layers", "h"):
            if isinstance(layers := getattr(holder, name, None), nn.ModuleList):
                return layers
    raise ConfigError(
        f"cannot find the decoder layers of a {model.config.model_type}: its "
        f"{type(decoder).__name__} has neither layers nor h"
    )


def connector(model: Any, site: str = VISION) -> nn.Module:
    """Return the module whose input is a vision site.

    Raises: ConfigError for a model that has no such site, UnsupportedFeatureError for
        one that the table of architectures lacks
    """
    row = vision_row(model.config, type(model).__name__)
    paths = row.modules(model.config)
    if site not in paths:
        raise ConfigError(
            f"a {model.config.model_type} has no site {site}; at its tower it has "
            f"{', '.join(paths)}"
        )
    module: nn.Module = model.get_submodule(row.prefix + paths[site])
    return module


def image_token_id(config: Any) -> int:
    """Return the token that stands for a patch in a prompt, -1 if there is none."""
    return int(getattr(config, "image_token_id", -1))


def counts_positions(config: Any) -> bool:
    """Say whether a model counts positions from the first column, padding too."""
    return config.model_type in ("gpt2", "gpt_bigcode")


def kind_of_answers(config: Any) -> int:
    """Return what ``token_type_ids`` say of written tokens.

    To PaliGemma 0 is a prompt, whose tokens see later ones.
    """
    return int(config.model_type == "paligemma")


def picture_encoder(model: Any) -> Callable[..., Any]:
    """Return what runs a model's tower and connector on what a processor made."""
    if hasattr(model, "get_image_features"):
        return cast(Callable[..., Any], model.get_image_features)

    def encode(pixel_values: Any, aspect_ratio_ids: Any, aspect_ratio_mask: Any) -> Any:
        """Encode as the forward of Llama 3.2 Vision does, which has no such part."""
        seen = model.model.vision_model(
            pixel_values, aspect_ratio_ids, aspect_ratio_mask
        )
        return model.model.multi_modal_projector(seen.last_hidden_state)

    return encode


def tower_layers_near(model: Any, distance: int) -> list[int]:
    """Return the tower's layers around the one that the projector reads.

    Numbered as the config does; none where the model cannot read another.
    """
    layer = getattr(model.config, "vision_feature_layer", None)
    accepted = inspect.signature(picture_encoder(model)).parameters
    if "vision_feature_layer" not in accepted or not isinstance(layer, int):
        return []
    num_layers = model.config.vision_config.num_hidden_layers
    end = 0 if layer < 0 else num_layers + 1
    near = range(layer - distance, layer + distance + 1)
    return [i for i in near if i != layer and end - num_layers - 1 <= i < end]


def layer_parameters(config: Any, layers: int, *, gated: int = 2) -> int:
    """Return the numbers in the matrices of a transformer's layers.

    ``gated``: matrices of its feed-forward part, three with a gate.
    """
    if getattr(config, "is_heterogeneous", False):
        each = config.per_layer_config
        return sum(layer_parameters(each[i], 1, gated=gated) for i in range(layers))
    d_model = _of(config, "embed_dim", "hidden_size")
    if config.model_type == "mamba2":  # two matrices in, one out, no attention
        return int(layers * 3 * config.expand * d_model**2)
    heads = _of(config, "num_attention_heads", "num_heads")
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or d_model // heads
    attention = 2 * d_model * head_dim * (heads + kv_heads)
    inner = _inner_width(config, d_model)
    if routed := getattr(config, "num_experts_per_tok", None):
        # What a token passes, not what there is.
        inner = routed * getattr(config, "moe_intermediate_size", inner)
    own_input = getattr(config, "hidden_size_per_layer_input", None) or 0  # Gemma's
    return int(layers * (attention + gated * d_model * inner + 2 * d_model * own_input))


def _inner_width(config: Any, d_model: int) -> int:
    """Return the width of a feed-forward part; 4 d_model where a config says none."""
    for name in ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"):
        if isinstance(value := getattr(config, name, None), int):
            return value
    return int(d_model * getattr(config, "mlp_ratio", 4))


def _of(config: Any, *names: str) -> int:
    """Return the first of these that a config has: towers call the same otherwise.

    Raises: AttributeError
    """
    for name in names:
        if isinstance(value := getattr(config, name, None), int):
            return value
    raise AttributeError(f"{config.model_type} has none of {', '.join(names)}")


def tower_parameters(config: Any) -> int:
    """Count the layers up to the one that is read, which are all that vLLM builds."""
    read = getattr(config, "vision_feature_layer", None)
    layers = _of(config.vision_config, "num_hidden_layers", "depth")
    layers += getattr(config.vision_config, "num_global_layers", 0)
    if read is not None:
        chosen: Iterable[int] = read if isinstance(read, list | tuple) else (read,)
        # -1 is after the last layer; 0 would be before the first.
        layers = max(i if i >= 0 else layers + 1 + i for i in chosen)
    gated = 3 if config.vision_config.model_type == "gemma4_vision" else 2
    return layer_parameters(config.vision_config, layers, gated=gated)


def projector_parameters(config: Any) -> int:
    """Two matrices in LLaVA; Gemma's single one is for few tokens, and left out.

    Of Llama 3.2 Vision one matrix, of which every row is read.
    """
    if config.model_type == "mllama":
        d_text = config.get_text_config().hidden_size
        return int(d_text * config.vision_config.vision_output_dim)
    if config.model_type not in ("llava", "llava_next"):
        return 0
    d_text = config.get_text_config().hidden_size
    return int(d_text * (config.vision_config.hidden_size + d_text))


OWN_SIZE: Final = (640, 480)
"""Of the picture that a model is planned with that takes any size."""


def _side(value: Any) -> int:
    first = value[0] if isinstance(value, list | tuple) else value
    return first if isinstance(first, int) else 0


def _merged(config: Any) -> int:
    """Return the side of the square of patches that makes one token of a prompt."""
    vision = config.vision_config
    for holder, name in (
        (vision, "spatial_merge_size"),
        (config, "spatial_merge_size"),
    ):
        if isinstance(side := getattr(holder, name, None), int):
            return side
    for holder, name in ((config, "downsample_ratio"), (vision, "pixel_shuffle_ratio")):
        if ratio := getattr(holder, name, None):
            return round(1 / ratio)
    side = getattr(config, "scale_factor", None)
    return int(side or getattr(config, "downsample_factor", None) or 1)


def _reads_merged(config: Any) -> bool:
    """Say whether the square is one row at the vision site already."""
    return config.model_type.startswith(("internvl", "glm"))


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
    of: tuple[int, int] | None = None
    """Width and height of the picture that was counted, where the model's own size
    depends on them."""


def picture_size(config: Any) -> PictureSize:
    """Return what one picture is to a model, by its model_type.

    - llava: its patches, all of them in the prompt.
    - llava_next: the whole picture and up to five tiles, the tiles' rows of patches
      each with a newline token.
    - gemma4: as many pooled patches as its tower takes at most, a token before and one
      after them.
    - gemma3: patches pooled to ``mm_tokens_per_image``, pan-and-scan off; a token
      before and one after them.
    - those that take pictures at their own size (Qwen, GLM, Pixtral): one of 640 x 480,
      its patches merged by squares in the prompt.
    - mllama: all of its tiles pass the site, those of padding, too, and each has a
      class token; a prompt has one token for them.
    - others: as llava, as one tile.

    Source: transformers' LlavaNextProcessor._get_number_of_features and Gemma3Processor
    """
    vision: Any = getattr(config, "vision_config", None)
    if vision is None:
        return PictureSize(0, 0, 0)
    if config.model_type == "gemma4":
        # What its processor enlarges and pools a picture of any shape to, at most.
        rows = getattr(vision, "default_output_length", 280)
        return PictureSize(rows, rows * vision.pooling_kernel_size**2, rows + 2)
    size, patch = (
        _side(getattr(vision, n, None)) for n in ("image_size", "patch_size")
    )
    merged = _merged(config)
    takes_any = config.model_type.startswith(("qwen", "glm"))
    if patch and (takes_any or not size or vision.model_type == "pixtral"):
        wide, high = (n // (patch * merged) * merged for n in OWN_SIZE)
        rows = wide * high // (merged**2 if _reads_merged(config) else 1)
        prompt = wide * high // merged**2
        return PictureSize(rows, wide * high, prompt, of=OWN_SIZE)
    if not patch:
        return PictureSize(0, 0, 0)
    side = size // patch
    patches = side * side
    if config.model_type == "gemma3":
        return PictureSize(patches, patches, config.mm_tokens_per_image + 2)
    if config.model_type == "mllama":
        rows = vision.max_num_tiles * (patches + 1)
        return PictureSize(rows, rows, 1)
    # CLIP's class token is read by the tower and dropped after it.
    classes = int(vision.model_type == "clip_vision_model")
    if config.model_type != "llava_next":
        rows = patches // (merged**2 if _reads_merged(config) else 1)
        return PictureSize(rows, patches + classes, patches // merged**2)
    shapes = [
        (high // size, wide // size) for high, wide in config.image_grid_pinpoints
    ]
    tiles = 1 + max(high * wide for high, wide in shapes)
    prompt = max(patches + high * side * (wide * side + 1) for high, wide in shapes)
    return PictureSize(tiles * patches, tiles * (patches + classes), prompt, tiled=True)
