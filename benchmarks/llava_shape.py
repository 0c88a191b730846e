# SPDX-License-Identifier: Apache-2.0
"""Write a model folder of LLaVA-1.5-7B's shape, without weights and without a network.

``python benchmarks/llava_shape.py DIR [--layers 32]``

For ``--load-format dummy``. Words are sauce-tiny's, a few of the 32,064 that the shape
has; a picture takes 576 tokens.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

TINY = Path(__file__).resolve().parents[1] / "examples" / "tiny" / "model"
SIDE, PATCH = 336, 14
TEXT = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32064,
    "tie_word_embeddings": False,
}
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "image_size": SIDE,
    "patch_size": PATCH,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}


def write(folder: Path, layers: int = 32) -> None:
    """Write the folder; ``layers`` of text."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TINY / name, folder / name)
    config = _read("config.json")
    config["text_config"] |= TEXT | {"num_hidden_layers": layers}
    config["vision_config"] |= VISION
    config |= {
        "dtype": "float16",
        "image_seq_length": (SIDE // PATCH) ** 2,
        "tie_word_embeddings": False,
    }
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", _read("generation_config.json"))
    processor = _read("processor_config.json")
    processor["patch_size"] = PATCH
    processor["image_processor"] |= {
        "crop_size": {"height": SIDE, "width": SIDE},
        "size": {"shortest_edge": SIDE},
    }
    _write(folder / "processor_config.json", processor)


def _read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((TINY / name).read_text())
    return found


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    options = parser.parse_args()
    write(options.folder, options.layers)
