# SPDX-License-Identifier: Apache-2.0
"""What was learnt, as one small file: a projector and the LoRA of each layer."""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from smol.model import SCALE, Learner


def save_weights(learner: Learner, path: Path) -> None:
    """Write what was learnt, in bfloat16."""
    kept = {f"projector.{k}": v for k, v in learner.projector.folded().items()}
    for name, lora in learner.loras():
        kept[f"{name}.A"], kept[f"{name}.B"] = lora.A, lora.B
    rounded = {k: v.detach().to(torch.bfloat16).contiguous() for k, v in kept.items()}
    save_file(rounded, path, metadata={"format": "pt"})
    path.chmod(0o644)


def projector_and_changes(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the projector's weights and what LoRA adds to the language model's.

    Names are those of ``LlavaForConditionalGeneration``'s and of a Llama's parameters.
    """
    kept = load_file(path)
    projector = {
        name.removeprefix("projector."): tensor.float()
        for name, tensor in kept.items()
        if name.startswith("projector.")
    }
    changes = {}
    for name in kept:
        if name.endswith(".A"):
            layer, part = name.removesuffix(".A").rsplit(".", 1)
            # In double precision the sum is the same on every machine.
            low, high = kept[name].double(), kept[f"{layer}.{part}.B"].double()
            change = (SCALE * (high @ low)).float()
            changes[f"{layer}.self_attn.{part}_proj.weight"] = change
    return projector, changes
