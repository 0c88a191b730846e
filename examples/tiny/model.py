# SPDX-License-Identifier: Apache-2.0
"""The architecture of sauce-tiny: a CLIP tower, a projector and a Llama."""

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tiny.vocabulary import BOS, EOS, IMAGE, PAD, token_id, vocabulary
from tiny.world import PICTURE_SIZE

PATCH_SIZE = 8
NUM_PATCHES = (PICTURE_SIZE // PATCH_SIZE) ** 2
D_VISION = 256
D_TEXT = 192
INITIALIZER_RANGE = 0.06
"""About 1 / sqrt(D_TEXT); with Llama's 0.02 so narrow a model learns far slower."""


def build_config() -> LlavaConfig:
    """Return the configuration, in the shape of public llava-hf checkpoints."""
    vision = CLIPVisionConfig(
        hidden_size=D_VISION,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=PICTURE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=D_VISION,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=D_TEXT,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=INITIALIZER_RANGE,
        pad_token_id=token_id(PAD),
        bos_token_id=token_id(BOS),
        eos_token_id=token_id(EOS),
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=token_id(IMAGE),
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=NUM_PATCHES,
        tie_word_embeddings=True,
    )


def build_model(seed: int) -> LlavaForConditionalGeneration:
    """Return a freshly initialised model in float32."""
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(build_config()).float()


def penultimate(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """Return the tower's residual stream that the projector reads, without CLS.

    Shapes: [num_pictures, 3, 56, 56] -> [num_pictures, 49, d_vision]
    """
    tower = model.model.vision_tower
    core = getattr(tower, "vision_model", tower)
    hidden = core.pre_layrnorm(core.embeddings(pixels))
    for layer in core.encoder.layers[:-1]:
        output = layer(hidden, attention_mask=None)
        hidden = output[0] if isinstance(output, tuple) else output
    return hidden[:, 1:]
