# SPDX-License-Identifier: Apache-2.0
"""Answers requests with drafted tokens, in a process of its own.

``python -m tests.plugin.speculating METHOD BUNDLE FOLDER``: after an engine that
drafts by n-grams no other starts in a process. Prints one line of JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.plugin.conftest import engine
from tests.plugin.support import LONG, MODEL, Ask, run

MASKS: tuple[tuple[str, ...], ...] = ((), ("seen",), ("read",), ("both",))
ASKS = [
    Ask(number, question, mask, max_tokens=12)
    for number, question in enumerate(("is there a dog in the picture ?", LONG))
    for mask in MASKS
]
CONFIGS: dict[str, dict[str, Any]] = {
    "ngram": {"prompt_lookup_max": 3, "prompt_lookup_min": 1},
    "draft_model": {},
    "eagle": {},
}


def write_drafter(method: str, folder: Path) -> Path:
    """Write sauce-tiny's language model as a draft model, or its last layer's head."""
    import torch
    from safetensors.torch import load_file, save_file

    text = json.loads((MODEL / "config.json").read_text())["text_config"]
    whole = load_file(MODEL / "model.safetensors")
    end = "embed_tokens.weight"
    (prefix,) = (name[: -len(end)] for name in whole if name.endswith(end))
    tensors = {
        "model." + name[len(prefix) :]: tensor
        for name, tensor in whole.items()
        if name.startswith(prefix)
    }
    config = text | {"architectures": ["LlamaForCausalLM"], "dtype": "float32"}
    if method == "eagle":
        last, width = text["num_hidden_layers"] - 1, text["hidden_size"]
        layer = f"model.layers.{last}."
        tensors = {
            "layers.0." + name[len(layer) :]: tensor
            for name, tensor in tensors.items()
            if name.startswith(layer) and "input_layernorm" not in name
        } | {
            # It hands on the target's state; what is embedded next to it is left out.
            "fc.weight": torch.cat([torch.zeros(width, width), torch.eye(width)], 1),
            "embed_tokens.weight": tensors["model.embed_tokens.weight"],
        }
        config |= {"num_hidden_layers": 1, "tie_word_embeddings": False}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(MODEL / name, folder / name)
    return folder


def main(method: str, bundle: str, folder: str) -> None:
    """Answer all, twice: as one batch, and in the other order with warm caches."""
    spec = {"method": method, "num_speculative_tokens": 3, **CONFIGS[method]}
    if method != "ngram":
        spec["model"] = str(write_drafter(method, Path(folder) / method))
    llm = engine(
        MODEL,
        {"bundle": bundle},
        speculative_config=spec,
        disable_log_stats=False,
        max_num_batched_tokens=128,
    )
    replies = run(llm, ASKS)
    again = run(llm, ASKS[::-1])[::-1]
    counts = {
        metric.name.rpartition("num_")[2]: metric.value
        for metric in llm.get_metrics()
        if metric.name.startswith("vllm:spec_decode_num_") and hasattr(metric, "value")
    }
    print(
        "ANSWERS",
        json.dumps(
            {
                "counts": counts,
                "replies": [
                    [[one.tokens, one.logprobs] for one in pair]
                    for pair in zip(replies, again, strict=True)
                ],
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
