# SPDX-License-Identifier: Apache-2.0
"""What the random vision-language models share: words, sizes, weights, files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

D_MODEL = 64
D_VISION = 32
# The side of a crop of the towers that take crops of one size.
SIDE = 56
CROP = {"height": SIDE, "width": SIDE}
TILINGS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]

# A tower of 32 features and 16 patches, in the names that most configs have for them.
TOWER: dict[str, Any] = {
    "hidden_size": D_VISION,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 14,
}
CLIP = TOWER | {"model_type": "clip_vision_model", "projection_dim": D_VISION}
SIGLIP = TOWER | {"model_type": "siglip_vision_model"}
PIXTRAL = TOWER | {"model_type": "pixtral", "head_dim": 16, "image_size": 2 * SIDE}

# Tokenizers of some families know these as words; the tiny one knows no line break.
LINE_BREAKS = ["\n" * count for count in range(1, 5)]


class Built(NamedTuple):
    """A model that has not got its weights yet, and what reads its prompts."""

    model: Any
    processor: Any


def tokenizer_with(
    folder: Path, words: Iterable[str] = (), named: dict[str, str] | None = None
) -> Any:
    """The tokenizer in `folder` and more words; processors look some up by name."""
    from transformers import AutoTokenizer

    more: dict[str, Any] = {"extra_special_tokens": named} if named else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, **more)
    tokenizer.add_tokens(
        [word for word in words if word not in tokenizer.get_vocab()],
        special_tokens=True,
    )
    return tokenizer


def text(tokenizer: Any, **changed: Any) -> dict[str, Any]:
    """The language model's part of a config."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": D_MODEL,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    } | changed


def randomise(model: Any, rounded: bool) -> None:
    """Draw all weights but the norms': some projectors initialise to zero.

    Where results are `rounded` to bfloat16 weights are smaller: a picture must change
    more than the rounding does.
    """
    std, head = (0.1, 0.05) if rounded else (0.2, 0.2)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                spread = head if name.startswith("lm_head.") else std
                weight.normal_(0, spread, generator=generator)
            elif weight.numel() == 1 and "gate" in name:
                weight.fill_(0.8)  # small, it would shut a picture out
            elif "norm" not in name.lower():
                weight.normal_(0, 0.05, generator=generator)


def save(folder: Path, built: Built) -> None:
    """Write model, processor and tokenizer as a public checkpoint has them."""
    from transformers import GenerationConfig

    tokenizer = built.processor.tokenizer
    built.model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    built.model.save_pretrained(folder)
    built.processor.save_pretrained(folder)
    _lay_out(folder / "model.safetensors", built.model.config)


def _lay_out(path: Path, config: Any) -> None:
    """Lay out the weights as public checkpoints do and vLLM's loaders want."""
    tensors = load_file(path)
    if config.vision_config.model_type.startswith(("clip_", "siglip")):
        short, long = "vision_tower.", "vision_tower.vision_model."
        tensors = {
            name if long in name else name.replace(short, long, 1): tensor
            for name, tensor in tensors.items()
        }
    if config.model_type == "qwen3_vl_moe":
        tensors = {
            name: tensor.mT.contiguous() if ".experts." in name else tensor
            for name, tensor in tensors.items()
        }
    save_file(tensors, path, metadata={"format": "pt"})
