# SPDX-License-Identifier: Apache-2.0
"""A Gemma 3 with random weights: norms after each part of a layer, sliding windows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.plugin.random_bundle import random_sae
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit

SPECIAL = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
D_MODEL = 64


def write_random_gemma3(folder: Path, tokenizer_dir: Path) -> Path:
    """Write the model as public checkpoints of Gemma 3 are laid out."""
    from transformers import (
        AutoTokenizer,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessor,
        Gemma3Processor,
        GenerationConfig,
    )

    tokenizer = AutoTokenizer.from_pretrained(
        tokenizer_dir, extra_special_tokens=SPECIAL
    )
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(_config(tokenizer)).float()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(folder)
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer=tokenizer,
        image_seq_length=4,
    )
    processor.save_pretrained(folder)
    _rename_tower(folder / "model.safetensors")
    return folder


def write_gemma3_bundle(folder: Path, model_dir: Path) -> Path:
    """Write a bundle with one concept behind layer 1, its edit strong."""
    edit = SiteEdit.uniform(range(7, 60), gamma=-4.0, shift=-1.0, gate=0.05)
    concept = Concept(name="read", domain="random", edits={"decoder.1": edit})
    saes = {
        "decoder.1": random_sae(
            2, D_MODEL, threshold=torch.full((96,), 0.1), architecture="jumprelu"
        )
    }
    fingerprint = fingerprint_model(model_dir)
    Bundle.build(fingerprint, saes, Catalogue([concept])).save(folder)
    return folder


def _config(tokenizer: Any) -> Any:
    from transformers import Gemma3Config

    ids = {
        name: tokenizer.convert_tokens_to_ids(word) for name, word in SPECIAL.items()
    }
    return Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": D_MODEL,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 32,
            "initializer_range": 0.3,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
        },
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        image_token_index=ids["image_token"],
    )


def _rename_tower(path: Path) -> None:
    """Name the tower's weights as public checkpoints do and vLLM's loader wants."""
    tensors = {
        name.replace("vision_tower.", "vision_tower.vision_model.", 1): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
