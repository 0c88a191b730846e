# SPDX-License-Identifier: Apache-2.0
"""Write a model exactly as the public llava-hf checkpoints are laid out."""

import hashlib
from pathlib import Path

from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, LlavaForConditionalGeneration

from tiny.tokenizer import build_processor
from tiny.vocabulary import BOS, EOS, PAD, token_id

MODEL_FOLDER = Path(__file__).parent / "model"
WEIGHTS = "model.safetensors"


def public_key(name: str) -> str:
    """Return a tensor's name as public llava-hf checkpoints spell it.

    transformers 5 leaves out ``vision_model.``, which vLLM's loader wants.
    """
    if "vision_tower." in name and "vision_tower.vision_model." not in name:
        return name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def weights_digest(folder: Path) -> str:
    """Return the sha256 of the weights file in hexadecimal."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def export(model: LlavaForConditionalGeneration, folder: Path = MODEL_FOLDER) -> None:
    """Save weights, configuration, processor, tokenizer and ``SHA256``."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(
        bos_token_id=token_id(BOS),
        eos_token_id=token_id(EOS),
        pad_token_id=token_id(PAD),
        max_new_tokens=16,
        do_sample=False,
    )
    model.config.architectures = ["LlavaForConditionalGeneration"]
    model.save_pretrained(folder)
    tensors = load_file(folder / WEIGHTS)
    renamed = {public_key(name): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
    build_processor().save_pretrained(folder)
    (folder / "SHA256").write_text(f"{weights_digest(folder)}  {WEIGHTS}\n")
