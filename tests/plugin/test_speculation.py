# SPDX-License-Identifier: Apache-2.0
"""Drafted tokens under masks: nothing is said that the edited model does not say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.answering import ASKS, answers
from tests.plugin.support import MODEL

pytestmark = pytest.mark.engine

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


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.feature(f"speculation: {name}"))
        for name in CONFIGS
    ],
)
def test_each_answer_is_the_edited_models(
    method: str, bundle_dir: Path, reference: Any, tmp_path: Path
) -> None:
    """Tokens and log-probabilities are transformers' with the edit; drafts are used."""
    spec = {"method": method, "num_speculative_tokens": 3, **CONFIGS[method]}
    if method != "ngram":
        spec["model"] = str(write_drafter(method, tmp_path / method))
    found = answers(bundle_dir, speculative_config=spec)
    for ask, pair in zip(ASKS, found.replies, strict=True):
        want = reference.reply(ask)
        assert all(one.close(want, 1e-3) for one in pair), ask
    drafted = found.drafted
    assert drafted["accepted_tokens"] > 0, drafted
    assert drafted["draft_tokens"] > drafted["accepted_tokens"], drafted
