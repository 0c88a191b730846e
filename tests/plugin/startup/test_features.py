# SPDX-License-Identifier: Apache-2.0
"""Features that are not proven stop the start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sauce.errors import UnsupportedFeatureError
from vllm_sauce.plugin.startup.features import (
    refuse_quantized,
    refuse_unproven,
    unproven,
)


def config(**changes: Any) -> Any:
    """Return a stand-in for ``VllmConfig`` with everything off, then ``changes``."""
    parallel = {
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "data_parallel_size": 1,
        "distributed_executor_backend": "mp",
        "use_ubatching": False,
    }
    found = SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel),
        model_config=SimpleNamespace(
            runner_type="generate",
            hf_overrides={},
            hf_config_path=None,
            enable_prompt_embeds=False,
            is_moe=False,
            is_encoder_decoder=False,
            multimodal_config=SimpleNamespace(
                enable_mm_embeds=False,
                mm_encoder_only=False,
                get_limit_per_prompt=lambda modality: 999,
            ),
        ),
        compilation_config=SimpleNamespace(
            cudagraph_mm_encoder=False,
            compile_mm_encoder=False,
            pass_config=SimpleNamespace(enable_sp=None),
        ),
        speculative_config=None,
        kv_transfer_config=None,
        lora_config=None,
    )
    for path, value in changes.items():
        *outer, last = path.split("__")
        owner: Any = found
        for name in outer:
            owner = getattr(owner, name)
        setattr(owner, last, value)
    return found


def test_nothing_on_is_accepted() -> None:
    """The default configuration passes; so do adapters of the language model."""
    assert unproven(config()) == []
    adapters = SimpleNamespace(enable_tower_connector_lora=False)
    assert unproven(config(lora_config=adapters)) == []
    assert unproven(config(speculative_config=SimpleNamespace(method="ngram"))) == []


@pytest.mark.parametrize(
    ("change", "value", "says"),
    [
        ("parallel_config__decode_context_parallel_size", 2, "parallel_size=2"),
        ("parallel_config__use_ubatching", True, "dual-batch"),
        (
            "compilation_config__cudagraph_mm_encoder",
            True,
            "CUDA graphs of the encoder",
        ),
        (
            "speculative_config",
            SimpleNamespace(method="suffix"),
            r"by suffix \(proven: ngram, draft_model, eagle\)",
        ),
        (
            "speculative_config",
            SimpleNamespace(method="eagle", rejection_sample_method="synthetic"),
            "accepted by the synthetic method",
        ),
        (
            "speculative_config",
            SimpleNamespace(method="eagle", enable_adaptive_verification=True),
            "adaptive verification",
        ),
        ("kv_transfer_config", object(), "KV transfer"),
        ("load_config", SimpleNamespace(load_format="pt"), "--load-format pt"),
        ("model_config__config_format", "mistral", "--config-format mistral"),
        ("weight_transfer_config", object(), "--weight-transfer-config"),
        (
            "cache_config",
            SimpleNamespace(kv_sharing_fast_prefill=True),
            "kv-sharing-fast-prefill",
        ),
        (
            "lora_config",
            SimpleNamespace(enable_tower_connector_lora=True),
            "LoRA of the vision tower",
        ),
        ("model_config__enable_prompt_embeds", True, "prompt embeddings"),
        ("model_config__multimodal_config__enable_mm_embeds", True, "image embeddings"),
        ("model_config__multimodal_config__mm_encoder_only", True, "without its model"),
        (
            "model_config__multimodal_config__mm_processor_cache_type",
            "shm",
            "pictures come to the engine as addresses",
        ),
        ("model_config__runner_type", "pooling", "pooling"),
        (
            "model_config__hf_overrides",
            {"vision_config": {"image_size": 448}},
            "--hf-overrides",
        ),
        ("model_config__hf_overrides", lambda config: config, "--hf-overrides"),
        (
            "model_config__multimodal_config__mm_processor_kwargs",
            {"do_normalize": False},
            "--mm-processor-kwargs",
        ),
        ("model_config__hf_config_path", "another/model", "--hf-config-path"),
    ],
)
def test_each_unproven_feature_is_refused(change: str, value: Any, says: str) -> None:
    """The error names the feature and what to do."""
    with pytest.raises(UnsupportedFeatureError, match=says) as caught:
        refuse_unproven(config(**{change: value}), sites=("vision",))
    assert "switch these off" in str(caught.value)


def test_a_shared_cache_of_pictures_is_of_no_account_behind_the_tower() -> None:
    shared = {"model_config__multimodal_config__mm_processor_cache_type": "shm"}
    refuse_unproven(config(**shared), sites=("decoder.1",))


def test_several_devices_are_accepted() -> None:
    """Ranks of one stage, stages, and engines beside each other."""
    for name in ("tensor", "pipeline", "data"):
        refuse_unproven(
            config(**{f"parallel_config__{name}_parallel_size": 2}), sites=("vision",)
        )


@pytest.mark.parametrize(
    ("change", "value", "says"),
    [
        (
            "parallel_config__distributed_executor_backend",
            "ray",
            r"ray executor \(proven: mp\)",
        ),
        ("model_config__is_encoder_decoder", True, "Llama 3.2 Vision"),
        ("compilation_config__pass_config__enable_sp", True, "sequence parallelism"),
        ("compilation_config__pass_config__fuse_gemm_comms", True, "fuse_gemm_comms"),
        (
            "model_config__multimodal_config__mm_encoder_tp_mode",
            "data",
            "--mm-encoder-tp-mode data",
        ),
    ],
)
def test_what_splits_a_stages_tokens_is_refused(
    change: str, value: Any, says: str
) -> None:
    """With one rank it does nothing, and is let be."""
    refuse_unproven(config(**{change: value}), sites=("vision",))
    several = config(**{change: value}, parallel_config__tensor_parallel_size=2)
    with pytest.raises(UnsupportedFeatureError, match=says):
        refuse_unproven(several, sites=("vision",))


@pytest.mark.parametrize(
    ("change", "value", "says"),
    [
        ("parallel_config__nnodes", 2, "on several nodes"),
        ("speculative_config", SimpleNamespace(method="ngram"), "drafts in a pipeline"),
        (
            "lora_config",
            SimpleNamespace(enable_tower_connector_lora=False),
            "LoRA in a pipeline",
        ),
    ],
)
def test_what_nobody_tried_beside_a_pipeline_is_refused(
    change: str, value: Any, says: str
) -> None:
    refuse_unproven(config(**{change: value}), sites=("decoder.1",))
    several = config(**{change: value}, parallel_config__pipeline_parallel_size=2)
    with pytest.raises(UnsupportedFeatureError, match=says):
        refuse_unproven(several, sites=("decoder.1",))


def test_engines_that_ray_starts_are_refused() -> None:
    with pytest.raises(UnsupportedFeatureError, match="data-parallel-backend ray"):
        refuse_unproven(
            config(parallel_config__data_parallel_backend="ray"), sites=("decoder.1",)
        )


def test_engines_of_experts_are_refused() -> None:
    """They run in step, with dummy batches for those that have none."""
    several = config(parallel_config__data_parallel_size=2, model_config__is_moe=True)
    with pytest.raises(UnsupportedFeatureError, match="mixture of experts"):
        refuse_unproven(several, sites=("decoder.1",))


def test_weights_that_vllm_quantises_are_refused(tmp_path: Path) -> None:
    """A checkpoint that is quantised is compared with the bundle's fingerprint."""
    plain = config(model_config__quantization=None)
    refuse_quantized(plain, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    online = config(model_config__quantization="fp8")
    for folder in (tmp_path, None):
        with pytest.raises(UnsupportedFeatureError, match="--quantization fp8 changes"):
            refuse_quantized(online, folder)
    (tmp_path / "config.json").write_text('{"quantization_config": {"bits": 4}}')
    refuse_quantized(online, tmp_path)
    both = config(
        model_config__quantization="awq",
        model_config__quantization_config={"linear": "fp8"},
    )
    with pytest.raises(UnsupportedFeatureError, match="--quantization awq changes"):
        refuse_quantized(both, tmp_path)


def test_the_rust_front_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another program: no request would pass admission."""
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(UnsupportedFeatureError, match="VLLM_USE_RUST_FRONTEND"):
        refuse_unproven(config(), sites=("decoder.1",))
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "0")
    refuse_unproven(config(), sites=("decoder.1",))


@pytest.mark.parametrize(
    "options", [{"limit_per_prompt": {"image": 0}}, {"language_model_only": True}]
)
@pytest.mark.parametrize("site", ["vision", "vision.2"])
def test_a_vision_site_needs_pictures(options: dict[str, Any], site: str) -> None:
    """Without any, vLLM leaves out the tower and the canary could not tell why."""
    from vllm.config import MultiModalConfig

    without = config(model_config__multimodal_config=MultiModalConfig(**options))
    with pytest.raises(UnsupportedFeatureError, match="--limit-mm-per-prompt") as told:
        refuse_unproven(without, sites=("decoder.1", site))
    assert "serve a bundle of decoder sites" in str(told.value)
    refuse_unproven(without, sites=("decoder.1",))
    one = MultiModalConfig(limit_per_prompt={"image": 1})
    refuse_unproven(config(model_config__multimodal_config=one), sites=(site,))


def test_every_watched_switch_exists_in_this_vllm() -> None:
    """A renamed switch would be watched in vain."""
    from vllm.config import (
        CacheConfig,
        CompilationConfig,
        LoRAConfig,
        ModelConfig,
        MultiModalConfig,
        ParallelConfig,
        SpeculativeConfig,
        VllmConfig,
    )

    from vllm_sauce.plugin.startup import features

    owners = {
        "": VllmConfig,
        "parallel_config": ParallelConfig,
        "model_config": ModelConfig,
        "model_config.multimodal_config": MultiModalConfig,
        "compilation_config": CompilationConfig,
        "cache_config": CacheConfig,
        "lora_config": LoRAConfig,
    }
    for path, _, _ in features._SWITCHES:
        owner, _, name = path.rpartition(".")
        fields = owners[owner].__dataclass_fields__
        assert name in fields or hasattr(owners[owner], name), path
    for name in (
        *(*features._SPLIT, "distributed_executor_backend"),
        *("data_parallel_backend", "nnodes"),
    ):
        assert name in ParallelConfig.__dataclass_fields__, name
    for name in ("mm_encoder_tp_mode", "mm_processor_cache_type"):
        assert name in MultiModalConfig.__dataclass_fields__
    assert hasattr(ModelConfig, "is_moe")
    for name in ("method", "rejection_sample_method", "enable_adaptive_verification"):
        assert name in SpeculativeConfig.__dataclass_fields__, name
