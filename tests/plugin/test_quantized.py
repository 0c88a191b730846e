# SPDX-License-Identifier: Apache-2.0
"""A quantised copy of the bundle's model: refused, or served and edited."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.engines import starts_engine
from tests.places import ROOT
from tests.plugin.conftest import engine
from tests.plugin.support import MODEL
from vllm_sauce.client import forget
from vllm_sauce.errors import BundleMismatchError, UnsupportedFeatureError

pytestmark = pytest.mark.feature("quantised checkpoints, by leave")

TINY = ROOT / "examples/tiny"
SCHEME = {"num_bits": 8, "type": "int", "symmetric": True}
INT8 = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["re:.*vision_tower.*", "re:.*multi_modal_projector.*", "re:.*lm_head"],
    "config_groups": {
        "all": {
            "targets": ["Linear"],
            "weights": {**SCHEME, "strategy": "channel", "dynamic": False},
            "input_activations": {**SCHEME, "strategy": "token", "dynamic": True},
        }
    },
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sauce-tiny, as llm-compressor writes the language model in eight bits."""
    folder = tmp_path_factory.mktemp("quantized") / "model"
    shutil.copytree(MODEL, folder)
    tensors = {}
    for name, weight in load_file(MODEL / "model.safetensors").items():
        tensors[name] = weight
        if "language_model" in name and name.endswith("_proj.weight"):
            scale = weight.float().abs().amax(1, keepdim=True) / 127
            tensors[name] = (weight.float() / scale).round().to(torch.int8)
            tensors[name.replace(".weight", ".weight_scale")] = scale
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = INT8
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
@starts_engine
def llm(quantized: Path) -> Any:
    sauce = {"bundle": str(TINY / "bundle"), "allow_quantized": True}
    return engine(quantized, sauce)


def test_what_is_not_forgotten_is_named_and_what_is_not(llm: Any) -> None:
    """Whole answers, of one batch: each concept with and without its mask."""
    from vllm import SamplingParams

    assert llm.llm_engine.vllm_config.model_config.quantization == "compressed-tensors"
    labels = (TINY / "pictures/labels.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in labels[:12]]  # of objects
    names = [str(row["foreground"]) for row in rows]
    prompt = "USER: <image>\nWhat object is in the picture? ASSISTANT:"
    prompts: list[Any] = [
        {
            "prompt": prompt,
            "multi_modal_data": {"image": Image.open(TINY / "pictures" / row["file"])},
        }
        for row in rows
    ]
    params = [
        SamplingParams(temperature=0, max_tokens=6, extra_args=extra)
        for extra in ([None] * 12 + [forget(name) for name in names])
    ]
    outputs = llm.generate(prompts * 2, params, use_tqdm=False)
    said = [output.outputs[0].text.strip() for output in outputs]
    # Eight bits cost an answer here and there.
    assert sum(map(str.__eq__, said[:12], names)) >= 11
    assert not [name for name, one in zip(names, said[12:], strict=True) if name in one]


@pytest.mark.engine
def test_weights_that_only_claim_to_be_quantised_are_compared(tmp_path: Path) -> None:
    """By what vLLM will read, not by what a file says."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor + 0.01 for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": ""}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BundleMismatchError, match="weights_sha256"):
        engine(folder, {"bundle": str(TINY / "bundle"), "allow_quantized": True})


@pytest.mark.engine
def test_weights_replaced_under_the_leave_are_not_taken(
    llm: Any, quantized: Path
) -> None:
    weights = quantized / "model.safetensors"
    kept = weights.read_bytes()
    tensors = load_file(weights)
    (norm,) = (name for name in tensors if name.endswith("model.norm.weight"))
    tensors[norm] += 0.01
    save_file(tensors, weights, metadata={"format": "pt"})
    try:
        with pytest.raises(BundleMismatchError, match="not those that it was started"):
            llm.collective_rpc("reload_weights")
    finally:
        weights.write_bytes(kept)
    llm.collective_rpc("reload_weights")


@pytest.mark.engine
def test_without_leave_it_is_refused(quantized: Path) -> None:
    with pytest.raises(BundleMismatchError, match="--sauce-allow-quantized"):
        engine(quantized, {"bundle": str(TINY / "bundle")})
    with pytest.raises(UnsupportedFeatureError, match="--quantization fp8 changes"):
        engine(
            MODEL, {"bundle": str(TINY / "bundle")}, quantization="fp8", dtype="half"
        )
