# SPDX-License-Identifier: Apache-2.0
"""Tiny language models with random weights, one for each decoder layer of vLLM.

transformers is asked before an engine starts in the same process, or in another one:
serving a model that is not `native` changes transformers' classes for good.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

Form = Literal["sum", "first", "single"]
LAYERS = 4
# softplus of it, and half more, are numbers of bfloat16, to which vLLM rounds both.
XIELU_ALPHA = 0.388671875


@dataclass(frozen=True)
class TextModel:
    """A language model, and what its decoder layers leave in vLLM."""

    architecture: str
    """Class of transformers."""
    layers: tuple[str, ...]
    """Exact classes of vLLM's decoder layers, all of them."""
    form: Form
    """The stream is the sum of two tensors, the first of two, or the only one."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of its config beside the common ones, or instead of them."""
    path: str = "model.layers"
    """Of the layers in transformers; vLLM's may differ."""
    without: tuple[str, ...] = ()
    """Common arguments that its config must not have."""
    native: bool = True
    """vLLM has the layer; else it serves transformers' own, on tensors [1, n, d]."""
    served_as: str | None = None
    """The architecture's name in vLLM where it is another."""

    def config(self, common: Mapping[str, Any]) -> Any:
        import transformers

        given = {k: v for k, v in common.items() if k not in self.without}
        model = getattr(transformers, self.architecture)
        return model.config_class(**given | dict(self.own))


def _rows(form: Form, native: bool = True) -> Callable[..., TextModel]:
    """Makes rows of one form; most names are those of the architecture."""

    def row(
        name: str,
        own: Mapping[str, Any] | None = None,
        *,
        architecture: str | None = None,
        layers: tuple[str, ...] | None = None,
        **rest: Any,
    ) -> TextModel:
        return TextModel(
            architecture or f"{name}ForCausalLM",
            layers or (f"{name}DecoderLayer",),
            form,
            own or {},
            native=native,
            **rest,
        )

    return row


HALF_ROTARY = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    }
}
TIED = {"tie_word_embeddings": True}
SLIDING = {
    "sliding_window": 64,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
GPT = {"n_inner": 128}
# One head: on CPUs vLLM rotates several wrongly that come as [tokens, heads, d].
CONVOLUTIONS = {
    "num_attention_heads": 1,
    "head_dim": 64,
    "layer_types": ["conv", "full_attention"] * 2,
    **TIED,
}
# YaRN, as they are published: on CPUs vLLM's other rotation misreads latent keys,
# and its latent attention has this width only.
LATENT = {
    **ROUTED,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_expand": 2,
}

_sum = _rows("sum")
SUM: dict[str, TextModel] = {
    "afmoe": _sum(
        "Afmoe",
        {
            **EXPERTS,
            **SLIDING,
            "num_shared_experts": 1,
            "num_dense_layers": 1,
            "score_func": "sigmoid",
            "route_norm": True,
            "route_scale": 1.0,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "apertus": _sum("Apertus"),
    "deepseek_v2": _sum("DeepseekV2", {**LATENT, "topk_method": "greedy"}),
    "ernie4_5": _sum("Ernie4_5", layers=("LlamaDecoderLayer",)),
    "ernie4_5_moe": _sum(
        "Ernie4_5_Moe",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 64,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": LAYERS - 1,
            "moe_num_shared_experts": 1,
        },
    ),
    "exaone_moe": _sum(
        "ExaoneMoe",
        {
            **EXPERTS,
            **SLIDING,
            "first_k_dense_replace": 1,
            "is_moe_layer": [False, True, True, True],
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        },
    ),
    "gemma": _sum("Gemma", TIED),
    "gemma2": _sum("Gemma2", {**TIED, **SLIDING}),
    "gemma3": _sum("Gemma3", {**TIED, **SLIDING}),
    "glm4": _sum("Glm4", HALF_ROTARY),
    "glm4_moe": _sum("Glm4Moe", {**HALF_ROTARY, **ROUTED, "first_k_dense_replace": 1}),
    "glm4_moe_lite": _sum("Glm4MoeLite", LATENT),
    "gpt_oss": _sum("GptOss", {**LOCAL, **SLIDING}, layers=("TransformerBlock",)),
    "lfm2": _sum(
        "Lfm2",
        {
            **CONVOLUTIONS,
            "conv_dim": 64,
            "block_dim": 64,
            "block_ff_dim": 128,
            "block_auto_adjust_ff_dim": False,
        },
        layers=("Lfm2AttentionDecoderLayer", "Lfm2ShortConvDecoderLayer"),
    ),
    "lfm2_moe": _sum(
        "Lfm2Moe",
        {**CONVOLUTIONS, **EXPERTS, "num_dense_layers": 1},
        layers=("Lfm2MoeAttentionDecoderLayer", "Lfm2MoeShortConvDecoderLayer"),
    ),
    "llama": _sum("Llama"),
    "llama4": _sum(
        "Llama4",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 128,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 128,
            "layer_types": ["chunked_attention", "full_attention"] * 2,
            "no_rope_layers": [1, 0] * 2,
        },
    ),
    "mamba2": _sum(
        "Mamba2",
        {
            "state_size": 16,
            "num_heads": 4,
            "head_dim": 32,
            "n_groups": 1,
            "chunk_size": 16,
            "expand": 2,
        },
        path="backbone.layers",
    ),
    "ministral3": _sum("Ministral3", layers=("MistralDecoderLayer",)),
    "mistral": _sum("Mistral"),
    "mixtral": _sum("Mixtral", LOCAL),
    "nemotron": _sum("Nemotron", HALF_ROTARY),
    "nemotron_h": _sum(
        "NemotronH",
        {
            "hybrid_override_pattern": "M*-M*-",
            "num_hidden_layers": 6,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 1,
            "chunk_size": 16,
        },
        layers=(
            "NemotronHAttentionDecoderLayer",
            "NemotronHMLPDecoderLayer",
            "NemotronHMambaDecoderLayer",
        ),
    ),
    "olmoe": _sum("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "phi3": _sum("Phi3", {"sliding_window": None}, layers=("LlamaDecoderLayer",)),
    "qwen2": _sum("Qwen2"),
    "qwen2_moe": _sum("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 64}),
    "qwen3": _sum("Qwen3"),
    "qwen3_moe": _sum("Qwen3Moe", EXPERTS),
}

_first = _rows("first")
FIRST: dict[str, TextModel] = {
    "cohere": _first("Cohere", TIED),
    "cohere2": _first("Cohere2", {**TIED, **SLIDING}, layers=("CohereDecoderLayer",)),
    "cohere2_moe": _first("Cohere2Moe", {**TIED, **SLIDING, **EXPERTS}),
    "exaone4": _first("Exaone4", SLIDING),
    "granite_moe_hybrid": _first(
        "GraniteMoeHybrid",
        {
            **LOCAL,
            **MAMBA,
            "shared_intermediate_size": 64,
            "layer_types": ["mamba", "attention"] * 2,
            "position_embedding_type": "rope",
        },
        layers=(
            "GraniteMoeHybridAttentionDecoderLayer",
            "GraniteMoeHybridMambaDecoderLayer",
        ),
    ),
    "hyperclovax": _first("HyperCLOVAX"),
    "phimoe": _first(
        "Phimoe",
        {**LOCAL, "attention_bias": True, "lm_head_bias": True},
        served_as="PhiMoEForCausalLM",
        layers=("PhiMoEDecoderLayer",),
    ),
    "stablelm": _first("StableLm", layers=("StablelmDecoderLayer",)),
}

_single = _rows("single")
SINGLE: dict[str, TextModel] = {
    "bloom": _single("Bloom", TIED, path="transformer.h", layers=("BloomBlock",)),
    "falcon": _single(
        "Falcon",
        {"new_decoder_architecture": True, "num_kv_heads": 1},
        path="transformer.h",
        without=("head_dim",),
    ),
    "falcon_h1": _single(
        "FalconH1", {**MAMBA, "mamba_d_ssm": 128}, layers=("FalconH1ParallelHybrid",)
    ),
    "gemma4": _single(
        "Gemma4",
        {
            **TIED,
            **SLIDING,
            "global_head_dim": 32,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
        },
    ),
    "gpt2": _single(
        "GPT2",
        {**GPT, **TIED},
        path="transformer.h",
        layers=("GPT2Block",),
        architecture="GPT2LMHeadModel",
    ),
    "gpt_j": _single(
        "GPTJ", {**GPT, "rotary_dim": 16}, path="transformer.h", layers=("GPTJBlock",)
    ),
    "granite": _single("Granite"),
    "granite_moe": _single("GraniteMoe", LOCAL),
    "granite_moe_shared": _single(
        "GraniteMoeShared", {**LOCAL, "shared_intermediate_size": 64}
    ),
    "opt": _single(
        "OPT", {"ffn_dim": 128, "word_embed_proj_dim": 64}, path="model.decoder.layers"
    ),
}

_foreign = _rows("single", native=False)
FOREIGN: dict[str, TextModel] = {
    "arcee": _foreign("Arcee"),
    "glm": _foreign("Glm", HALF_ROTARY),
    "gpt_bigcode": _foreign(
        "GPTBigCode", GPT, layers=("GPTBigCodeBlock",), path="transformer.h"
    ),
    # vLLM would believe the config that there are fewer heads of keys.
    "gpt_neox": _foreign(
        "GPTNeoX",
        layers=("GPTNeoXLayer",),
        path="gpt_neox.layers",
        without=("num_key_value_heads",),
    ),
    "helium": _foreign("Helium"),
    "hunyuan_dense": _foreign("HunYuanDenseV1"),
    "olmo": _foreign("Olmo"),
    "olmo2": _foreign("Olmo2"),
    "olmo3": _foreign("Olmo3", SLIDING),
    "phi": _foreign("Phi", {"num_key_value_heads": 2}),
    "seed_oss": _foreign("SeedOss"),
    "smollm3": _foreign("SmolLM3", {"no_rope_layers": [1, 0] * 2}),
    "solar_open": _foreign("SolarOpen", {**ROUTED, "first_k_dense_replace": 0}),
    "starcoder2": _foreign("Starcoder2"),
}

TEXT_MODELS: dict[str, TextModel] = {**SUM, **FIRST, **SINGLE, **FOREIGN}


def write_text_model(folder: Path, name: str, tokenizer_dir: Path) -> Path:
    """Write the model `name` and its tokenizer below `folder`; say where."""
    import transformers

    row = TEXT_MODELS[name]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    model = getattr(transformers, row.architecture)(row.config({**sizes, **ends}))
    _randomise(model.float())
    model.generation_config = transformers.GenerationConfig(**ends)
    written = folder / name
    model.save_pretrained(written)
    tokenizer.save_pretrained(written)
    if row.served_as:
        path = written / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"architectures": [row.served_as]}))
    return written


def _randomise(model: torch.nn.Module, std: float = 0.2) -> None:
    """Weights by which each layer moves the answer; norms stay what they are."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("e_score_correction_bias", "lm_head.bias")):
                # Ernie's and PhiMoE's, which vLLM leaves out on CPUs, and always.
                weight.zero_()
            elif name.endswith(("alpha_p", "alpha_n")):
                weight.fill_(XIELU_ALPHA)
            elif weight.dim() > 1:
                weight.normal_(0, std, generator=generator)
            elif "norm" not in name.lower() and "ln" not in name.lower():
                weight.normal_(0, 0.05, generator=generator)
