# SPDX-License-Identifier: Apache-2.0
"""vLLM features under which the edit is not proven: refused at start, not ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vllm_sauce.bundle.fingerprint import is_quantized
from vllm_sauce.concepts import is_vision
from vllm_sauce.errors import UnsupportedFeatureError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import weights


def _get(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name, None)
    return config


_SPLIT = ("prefill_context_parallel_size", "decode_context_parallel_size")
"""Of a context's tokens among ranks."""

_PASSES = ("enable_sp", "fuse_gemm_comms")
"""Compilation's, which split a stage's tokens among its ranks."""

_SWITCHES = (
    ("kv_transfer_config", "KV transfer", "connectors may ignore the cache identity"),
    (
        "ec_transfer_config",
        "a remote encoder",
        "whose pictures it edits is not told there",
    ),
    (
        "weight_transfer_config",
        "transfer of weights (--weight-transfer-config)",
        "no bundle was made for those that come",
    ),
    (
        "cache_config.kv_sharing_fast_prefill",
        "--kv-sharing-fast-prefill",
        "some layers see the sampled tokens alone, at other places",
    ),
    (
        "lora_config.enable_tower_connector_lora",
        "LoRA of the vision tower (--enable-tower-connector-lora)",
        "vLLM 0.32 itself fails with it",
    ),
    (
        "parallel_config.use_ubatching",
        "dual-batch overlap",
        "the slots are of a whole batch",
    ),
    (
        "parallel_config.enable_expert_parallel",
        "expert parallelism",
        "ranks take part in each other's steps with dummy tokens",
    ),
    (
        "parallel_config.enable_elastic_ep",
        "elastic expert parallelism",
        "ranks that join later prove nothing",
    ),
    (
        "model_config.enable_prompt_embeds",
        "prompt embeddings",
        "which of them are a picture's is not told",
    ),
    # The fingerprint is of the config.json beside the weights.
    ("model_config.hf_overrides", "--hf-overrides", "changes the model's config"),
    ("model_config.hf_config_path", "--hf-config-path", "another model's config"),
    (
        "model_config.multimodal_config.mm_processor_kwargs",
        "--mm-processor-kwargs",
        "pictures are prepared otherwise than in the files that the bundle is "
        "compared with; write it there, and learn or stamp the bundle so",
    ),
    (
        "model_config.multimodal_config.enable_mm_embeds",
        "image embeddings as input",
        "they go around the tower",
    ),
    (
        "model_config.multimodal_config.mm_encoder_only",
        "an encoder without its model",
        "nothing is generated, or edited in the decoder",
    ),
    (
        "compilation_config.cudagraph_mm_encoder",
        "CUDA graphs of the encoder",
        "a graph would keep the mask that it was captured with",
    ),
    (
        "compilation_config.compile_mm_encoder",
        "compilation of the encoder",
        "the edit there is chosen anew for each batch",
    ),
)
"""Where vLLM has a feature, its name, and why it is refused."""


FOREIGN = (
    "update_config",
    "init_weight_transfer_engine",
    "start_weight_update",
    "start_draft_weight_update",
    "update_weights",
    "finish_weight_update",
    "reset_weights",
)
"""Worker methods that bring weights or settings which no bundle was made for."""

_SPECULATION = ("ngram", "draft_model", "eagle")
"""How tokens may be drafted: those that the edited model would not say are dropped."""


def _speculation(spec: Any) -> list[str]:
    """Return what of speculative decoding may say what the edited model does not."""
    if spec is None:
        return []
    found = []
    if spec.method not in _SPECULATION:
        tried = ", ".join(_SPECULATION)
        found.append(f"speculative decoding by {spec.method} (proven: {tried})")
    check = getattr(spec, "rejection_sample_method", "standard")
    if check != "standard":
        found.append(
            f"drafts accepted by the {check} method (not by what the model says)"
        )
    if getattr(spec, "enable_adaptive_verification", False):
        found.append(
            "adaptive verification of drafts (its numbers of tokens are bounds)"
        )
    return found


def _parallel(vllm_config: Any) -> list[str]:
    """Return what of several devices may let a rank miss tokens, or its proof."""
    parallel = vllm_config.parallel_config
    found = [
        f"{name}={size} (no rank has all of a prompt)"
        for name in _SPLIT
        if (size := getattr(parallel, name, 1)) not in (None, 1)
    ]
    if parallel.data_parallel_size > 1 and vllm_config.model_config.is_moe:
        found.append(
            "data parallelism of a mixture of experts (engines in step, never tried)"
        )
    if getattr(parallel, "data_parallel_backend", "mp") == "ray":
        found.append("--data-parallel-backend ray (proven: mp)")
    if parallel.tensor_parallel_size * parallel.pipeline_parallel_size == 1:
        return found
    if getattr(parallel, "nnodes", 1) > 1:
        found.append("an engine's ranks on several nodes (never tried)")
    if parallel.pipeline_parallel_size > 1:
        found += [
            f"{what} in a pipeline (never tried)"
            for name, what in (
                ("speculative_config", "drafts"),
                ("lora_config", "LoRA"),
            )
            if getattr(vllm_config, name) is not None
        ]
    if vllm_config.model_config.is_encoder_decoder:
        found.append("Llama 3.2 Vision on several ranks (never tried)")
    executor = parallel.distributed_executor_backend
    if executor != "mp":
        found.append(f"several ranks of the {executor} executor (proven: mp)")
    passes = _get(vllm_config, "compilation_config.pass_config")
    found += [
        f"the pass {name} (sequence parallelism: no rank has all tokens of a step)"
        for name in _PASSES
        if getattr(passes, name, False)
    ]
    return found


def unproven(vllm_config: Any) -> list[str]:
    """Return the features in use that nobody has proven correct under an edit."""
    found = _parallel(vllm_config)
    found += [f"{name} ({why})" for at, name, why in _SWITCHES if _get(vllm_config, at)]
    found += _speculation(_get(vllm_config, "speculative_config"))
    if compat.rust_frontend():
        found.append(
            "the Rust front end (VLLM_USE_RUST_FRONTEND: it passes no admission)"
        )
    found += weights.unhashed(vllm_config)
    runner = _get(vllm_config, "model_config.runner_type")
    if runner not in (None, "generate"):
        found.append(f"the {runner} runner (what it answers is not edited)")
    return found


def refuse_foreign(name: str) -> None:
    """Refuse a call that brings other weights or settings.

    Raises: UnsupportedFeatureError
    """
    raise UnsupportedFeatureError(
        f"{name} would change the model under the bundle's SAEs, which belong to "
        "the weights it was started with; start a server with the new weights and "
        "a bundle for them"
    )


def refuse_quantized(vllm_config: Any, model_dir: Path | None) -> None:
    """Stop the start when vLLM quantises weights that the bundle is of.

    Raises: UnsupportedFeatureError, ConfigError
    """
    model = vllm_config.model_config
    method = model.quantization
    # vLLM adds this one to what a checkpoint has.
    more = getattr(model, "quantization_config", None) is not None
    # A quantised checkpoint is what the bundle's fingerprint was compared with.
    mine = method is None or (model_dir is not None and is_quantized(model_dir))
    if mine and not more:
        return
    raise UnsupportedFeatureError(
        f"--quantization {method} changes the weights that the bundle was made for, "
        "and nobody has measured what is forgotten then; allow it "
        "(--sauce-allow-quantized) and measure it as served, with sauce eval"
    )


def refuse_unproven(vllm_config: Any, *, sites: tuple[str, ...]) -> None:
    """Stop the start when an unproven feature is on.

    Raises: UnsupportedFeatureError.
    """
    found = unproven(vllm_config)
    multimodal = _get(vllm_config, "model_config.multimodal_config")
    if any(map(is_vision, sites)) and (
        getattr(multimodal, "mm_encoder_tp_mode", None) == "data"
        and vllm_config.parallel_config.tensor_parallel_size > 1
    ):
        found.append(
            "--mm-encoder-tp-mode data (a rank edits its own pictures; untried)"
        )
    if any(map(is_vision, sites)) and (
        getattr(multimodal, "mm_processor_cache_type", None) == "shm"
    ):
        found.append(
            "--mm-processor-cache-type shm (pictures come to the engine as addresses, "
            "so whether they are pixels is not known)"
        )
    if found:
        raise UnsupportedFeatureError(
            f"sauce is not proven correct with: {'; '.join(found)} (sites "
            f"{', '.join(sites)}); switch these off, or serve without --plugin sauce"
        )
    if any(map(is_vision, sites)) and not compat.takes_pictures(vllm_config):
        raise UnsupportedFeatureError(
            "no picture may come (--limit-mm-per-prompt or --language-model-only), so "
            "vLLM leaves out the vision tower and the bundle's vision site has nothing "
            "to edit; allow pictures, or serve a bundle of decoder sites"
        )
