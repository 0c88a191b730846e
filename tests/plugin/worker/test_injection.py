# SPDX-License-Identifier: Apache-2.0
"""An action at its sites in a model, without an engine."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.plugin.worker.doubles import Told
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Catalogue, Concept
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import BundleMismatchError, UnsupportedFeatureError
from vllm_sauce.plugin.sites.action import action_of
from vllm_sauce.plugin.sites.modules import modules_at
from vllm_sauce.plugin.worker.injection import inject_edit, place, vision_sites
from vllm_sauce.plugin.worker.runtime import SauceRuntime, runtime_of
from vllm_sauce.unlearning.slots import OP_TENSORS

D_MODEL = 8


class LlamaDecoderLayer(nn.Module):
    """Returns what vLLM's does."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.clone(), 2 * x


class LlavaForConditionalGeneration(nn.Module):
    """Has its modules where vLLM's has them."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.ModuleList(LlamaDecoderLayer() for _ in range(3))
        self.language_model: Any = nn.Module()
        self.language_model.model = nn.Module()
        self.language_model.model.layers = layers
        self.multi_modal_projector = nn.Linear(D_MODEL, 3)

    def load_weights(self, weights: Any) -> set[str]:
        return {name for name, _ in weights}


LLAVA = SimpleNamespace(
    architectures=["LlavaForConditionalGeneration"],
    model_type="llava",
    vision_config=SimpleNamespace(),
)


def config_of(bundle_dir: Path, model_dir: Path, digest: str) -> Any:
    """Return what of an engine's configuration is read."""
    section = SauceConfig(bundle=str(bundle_dir)).to_mapping()
    return SimpleNamespace(
        additional_config={"sauce": {**section, "digest": digest}},
        model_config=SimpleNamespace(
            model=str(model_dir),
            revision=None,
            dtype=torch.float32,
            hf_config=LLAVA,
            is_encoder_decoder=False,
        ),
        scheduler_config=SimpleNamespace(max_num_seqs=3, max_num_batched_tokens=16),
        compilation_config=SimpleNamespace(cudagraph_capture_sizes=[1, 2]),
    )


def test_an_action_sees_what_passes_its_sites() -> None:
    model, told = LlavaForConditionalGeneration(), Told()
    layer = model.language_model.model.layers[1]
    before = model.state_dict().keys()
    config = SimpleNamespace(
        model_config=SimpleNamespace(hf_config=LLAVA, is_encoder_decoder=False)
    )
    place(model, config, told, modules_at(model, LLAVA, ("decoder.1", "vision")))
    assert action_of(model) is told and runtime_of(model) is None
    assert model.state_dict().keys() == before
    x = torch.ones(2, D_MODEL)
    hidden_states, residual = layer(x)
    (_, prepared, seen), *others = told.notes
    assert not others and prepared is layer
    assert seen[0] is layer and seen[1] is hidden_states and seen[2] is residual
    plain = nn.Linear.forward(model.multi_modal_projector, x + 1)
    assert torch.equal(model.multi_modal_projector(x), plain)
    assert type(layer).__name__ == "SauceLlamaDecoderLayer"
    assert hasattr(model, "get_model_state_cls")


def test_the_bundles_sites_are_edited(bundle_dir: Path, model_dir: Path) -> None:
    """Tables of the engine's sizes, as buffers that no checkpoint holds."""
    bundle = Bundle.load(bundle_dir)
    model = LlavaForConditionalGeneration()
    saved = model.state_dict().keys()
    config = config_of(bundle_dir, model_dir, bundle.digest)
    runtime = inject_edit(model, config)
    assert isinstance(runtime, SauceRuntime) and runtime_of(model) is runtime
    assert set(runtime.tables) == set(bundle.sites) == {"vision", "decoder.1"}
    assert not runtime.proven
    runtime.proven = True
    assert model.load_weights([("a", None)]) == {"a"}
    assert not runtime.proven and runtime.weights_lost
    layer = model.language_model.model.layers[1]
    buffers = dict(layer.named_buffers())
    table = runtime.tables["decoder.1"]
    assert all(buffers[f"sauce_{n}"] is getattr(table, n) for n in OP_TENSORS)
    assert table.num_slots == 3
    assert len(runtime.decoder["decoder.1"].slot_of_token) == 16
    kept = dict(model.multi_modal_projector.named_buffers())
    assert set(kept) == {f"sauce_{name}" for name in OP_TENSORS}
    assert model.state_dict().keys() == saved
    x = torch.randn(4, table.W_dec_rows.shape[1])
    hidden_states, _ = layer(x)
    assert torch.equal(hidden_states, x), "no token has a slot"


def test_without_sauce_a_model_stays(bundle_dir: Path) -> None:
    model = LlavaForConditionalGeneration()
    assert inject_edit(model, SimpleNamespace(additional_config={})) is None
    assert type(model.multi_modal_projector) is nn.Linear
    assert action_of(model) is None


def test_another_bundle_or_model_is_refused(
    bundle_dir: Path, model_dir: Path, tmp_path: Path
) -> None:
    model = LlavaForConditionalGeneration()
    digest = Bundle.load(bundle_dir).digest
    with pytest.raises(BundleMismatchError, match="changed while the engine started"):
        inject_edit(model, config_of(bundle_dir, model_dir, "0" * 64))
    with pytest.raises(BundleMismatchError, match="cannot find the files of"):
        inject_edit(model, config_of(bundle_dir, tmp_path / "gone", digest))
    shutil.copytree(model_dir, tmp_path, dirs_exist_ok=True)
    (weights,) = tmp_path.glob("*.safetensors")
    save_file({"one": torch.ones(1)}, weights)
    with pytest.raises(BundleMismatchError):
        inject_edit(model, config_of(bundle_dir, tmp_path, digest))
    assert action_of(model) is None


def test_a_site_that_is_not_proven_is_refused(
    bundle_dir: Path, model_dir: Path
) -> None:
    class OtherForConditionalGeneration(LlavaForConditionalGeneration):
        pass

    config = config_of(bundle_dir, model_dir, Bundle.load(bundle_dir).digest)
    with pytest.raises(UnsupportedFeatureError, match="as OtherFor"):
        inject_edit(OtherForConditionalGeneration(), config)


def test_pictures_have_no_way_around_a_bundles_sites(bundle_dir: Path) -> None:
    """A tower that hands on several layers is edited at all of them, or at none."""
    bundle = Bundle.load(bundle_dir)
    qwen = SimpleNamespace(
        architectures=["Qwen3VLForConditionalGeneration"],
        model_type="qwen3_vl",
        vision_config=SimpleNamespace(deepstack_visual_indexes=[1, 2]),
    )
    with pytest.raises(UnsupportedFeatureError, match=r"not at vision\.1, vision\.2:"):
        vision_sites(bundle, qwen)
    assert vision_sites(bundle, LLAVA) == ("vision",)
    sae, edit = bundle.sites["vision"].weights, bundle.catalogue["seen"].edits["vision"]
    sites = ("vision", "vision.1", "vision.2")
    whole = Concept(name="a", domain="d", edits=dict.fromkeys(sites, edit))
    part = Concept(name="b", domain="d", edits=dict.fromkeys(sites[:2], edit))
    text = Concept(name="c", domain="d", edits={"decoder.1": edit})
    layer = bundle.sites["decoder.1"].weights
    saes = {**dict.fromkeys(sites, sae), "decoder.1": layer}

    def built(*concepts: Concept) -> Bundle:
        return Bundle.build(bundle.fingerprint, saes, Catalogue(concepts))

    assert vision_sites(built(whole, text), qwen) == sites
    with pytest.raises(UnsupportedFeatureError, match=r"'b' .* not at vision\.2:"):
        vision_sites(built(whole, part), qwen)
    # Measured, or about to be.
    measured = replace(part, scores={"UAg": 0.9})
    tried = replace(part, provenance={"trial": True})
    assert vision_sites(built(measured), qwen) == sites
    assert vision_sites(built(tried), qwen) == sites
    only_text = Bundle.build(
        bundle.fingerprint, {"decoder.1": layer}, Catalogue([text])
    )
    assert vision_sites(only_text, LLAVA) == ()
