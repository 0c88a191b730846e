# SPDX-License-Identifier: Apache-2.0
"""Tiny language models with random weights, one for each decoder layer of vLLM.

transformers is asked before an engine starts in the same process, or in another one:
serving a model that is not `native` changes transformers' classes for good.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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


def _foreign(name: str, own: Mapping[str, Any] | None = None, **rest: Any) -> TextModel:
    """A model whose layers are transformers' own."""
    return TextModel(
        f"{name}ForCausalLM",
        (rest.pop("layer", f"{name}DecoderLayer"),),
        "single",
        own or {},
        native=False,
        **rest,
    )


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
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
}
GPT = {"n_inner": 128}
# One head: on CPUs vLLM turns the first head only of what these models hand it.
CONVOLUTIONS = {
    "num_attention_heads": 1,
    "head_dim": 64,
    "layer_types": ["conv", "full_attention"] * 2,
    **TIED,
}
MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "mamba_expand": 2,
}

SUM: dict[str, TextModel] = {
    "afmoe": TextModel(
        "AfmoeForCausalLM",
        ("AfmoeDecoderLayer",),
        "sum",
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
    "apertus": TextModel("ApertusForCausalLM", ("ApertusDecoderLayer",), "sum"),
    "ernie4_5": TextModel("Ernie4_5ForCausalLM", ("LlamaDecoderLayer",), "sum"),
    "ernie4_5_moe": TextModel(
        "Ernie4_5_MoeForCausalLM",
        ("Ernie4_5_MoeDecoderLayer",),
        "sum",
        {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 64,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": LAYERS - 1,
            "moe_num_shared_experts": 1,
        },
    ),
    "exaone_moe": TextModel(
        "ExaoneMoeForCausalLM",
        ("ExaoneMoeDecoderLayer",),
        "sum",
        {
            **EXPERTS,
            **SLIDING,
            "first_k_dense_replace": 1,
            "is_moe_layer": [False, True, True, True],
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        },
    ),
    "gemma": TextModel("GemmaForCausalLM", ("GemmaDecoderLayer",), "sum", TIED),
    "gemma2": TextModel(
        "Gemma2ForCausalLM", ("Gemma2DecoderLayer",), "sum", {**TIED, **SLIDING}
    ),
    "gemma3": TextModel(
        "Gemma3ForCausalLM", ("Gemma3DecoderLayer",), "sum", {**TIED, **SLIDING}
    ),
    "glm4": TextModel("Glm4ForCausalLM", ("Glm4DecoderLayer",), "sum", HALF_ROTARY),
    "glm4_moe": TextModel(
        "Glm4MoeForCausalLM",
        ("Glm4MoeDecoderLayer",),
        "sum",
        {**HALF_ROTARY, **ROUTED, "first_k_dense_replace": 1},
    ),
    "gpt_oss": TextModel(
        "GptOssForCausalLM", ("TransformerBlock",), "sum", {**LOCAL, **SLIDING}
    ),
    "lfm2": TextModel(
        "Lfm2ForCausalLM",
        ("Lfm2AttentionDecoderLayer", "Lfm2ShortConvDecoderLayer"),
        "sum",
        {
            **CONVOLUTIONS,
            "conv_dim": 64,
            "block_dim": 64,
            "block_ff_dim": 128,
            "block_auto_adjust_ff_dim": False,
        },
    ),
    "lfm2_moe": TextModel(
        "Lfm2MoeForCausalLM",
        ("Lfm2MoeAttentionDecoderLayer", "Lfm2MoeShortConvDecoderLayer"),
        "sum",
        {**CONVOLUTIONS, **EXPERTS, "num_dense_layers": 1},
    ),
    "llama": TextModel("LlamaForCausalLM", ("LlamaDecoderLayer",), "sum"),
    "llama4": TextModel(
        "Llama4ForCausalLM",
        ("Llama4DecoderLayer",),
        "sum",
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
    "mamba2": TextModel(
        "Mamba2ForCausalLM",
        ("Mamba2DecoderLayer",),
        "sum",
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
    "ministral3": TextModel("Ministral3ForCausalLM", ("MistralDecoderLayer",), "sum"),
    "mistral": TextModel("MistralForCausalLM", ("MistralDecoderLayer",), "sum"),
    "mixtral": TextModel("MixtralForCausalLM", ("MixtralDecoderLayer",), "sum", LOCAL),
    "nemotron": TextModel(
        "NemotronForCausalLM", ("NemotronDecoderLayer",), "sum", HALF_ROTARY
    ),
    "nemotron_h": TextModel(
        "NemotronHForCausalLM",
        (
            "NemotronHAttentionDecoderLayer",
            "NemotronHMLPDecoderLayer",
            "NemotronHMambaDecoderLayer",
        ),
        "sum",
        {
            "hybrid_override_pattern": "M*-M*-",
            "num_hidden_layers": 6,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "ssm_state_size": 16,
            "n_groups": 1,
            "chunk_size": 16,
        },
    ),
    "olmoe": TextModel(
        "OlmoeForCausalLM",
        ("OlmoeDecoderLayer",),
        "sum",
        {"num_experts": 4, "num_experts_per_tok": 2},
    ),
    "phi3": TextModel(
        "Phi3ForCausalLM", ("LlamaDecoderLayer",), "sum", {"sliding_window": None}
    ),
    "qwen2": TextModel("Qwen2ForCausalLM", ("Qwen2DecoderLayer",), "sum"),
    "qwen2_moe": TextModel(
        "Qwen2MoeForCausalLM",
        ("Qwen2MoeDecoderLayer",),
        "sum",
        {**EXPERTS, "shared_expert_intermediate_size": 64},
    ),
    "qwen3": TextModel("Qwen3ForCausalLM", ("Qwen3DecoderLayer",), "sum"),
    "qwen3_moe": TextModel(
        "Qwen3MoeForCausalLM", ("Qwen3MoeDecoderLayer",), "sum", EXPERTS
    ),
}

FIRST: dict[str, TextModel] = {
    "cohere": TextModel("CohereForCausalLM", ("CohereDecoderLayer",), "first", TIED),
    "cohere2": TextModel(
        "Cohere2ForCausalLM", ("CohereDecoderLayer",), "first", {**TIED, **SLIDING}
    ),
    "cohere2_moe": TextModel(
        "Cohere2MoeForCausalLM",
        ("Cohere2MoeDecoderLayer",),
        "first",
        {**TIED, **SLIDING, **EXPERTS},
    ),
    "exaone4": TextModel(
        "Exaone4ForCausalLM", ("Exaone4DecoderLayer",), "first", SLIDING
    ),
    "granite_moe_hybrid": TextModel(
        "GraniteMoeHybridForCausalLM",
        (
            "GraniteMoeHybridAttentionDecoderLayer",
            "GraniteMoeHybridMambaDecoderLayer",
        ),
        "first",
        {
            **LOCAL,
            **MAMBA,
            "shared_intermediate_size": 64,
            "layer_types": ["mamba", "attention"] * 2,
            "position_embedding_type": "rope",
        },
    ),
    "hyperclovax": TextModel(
        "HyperCLOVAXForCausalLM", ("HyperCLOVAXDecoderLayer",), "first"
    ),
    "phimoe": TextModel(
        "PhimoeForCausalLM",
        ("PhiMoEDecoderLayer",),
        "first",
        {**LOCAL, "attention_bias": True, "lm_head_bias": True},
        served_as="PhiMoEForCausalLM",
    ),
    "stablelm": TextModel("StableLmForCausalLM", ("StablelmDecoderLayer",), "first"),
}

SINGLE: dict[str, TextModel] = {
    "bloom": TextModel(
        "BloomForCausalLM", ("BloomBlock",), "single", TIED, "transformer.h"
    ),
    "falcon": TextModel(
        "FalconForCausalLM",
        ("FalconDecoderLayer",),
        "single",
        {"new_decoder_architecture": True, "num_kv_heads": 1},
        "transformer.h",
        without=("head_dim",),
    ),
    "falcon_h1": TextModel(
        "FalconH1ForCausalLM",
        ("FalconH1ParallelHybrid",),
        "single",
        {**MAMBA, "mamba_d_ssm": 128},
    ),
    "gemma4": TextModel(
        "Gemma4ForCausalLM",
        ("Gemma4DecoderLayer",),
        "single",
        {
            **TIED,
            **SLIDING,
            "global_head_dim": 32,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
        },
    ),
    "gpt2": TextModel(
        "GPT2LMHeadModel", ("GPT2Block",), "single", {**GPT, **TIED}, "transformer.h"
    ),
    "gpt_j": TextModel(
        "GPTJForCausalLM",
        ("GPTJBlock",),
        "single",
        {**GPT, "rotary_dim": 16},
        "transformer.h",
    ),
    "granite": TextModel("GraniteForCausalLM", ("GraniteDecoderLayer",), "single"),
    "granite_moe": TextModel(
        "GraniteMoeForCausalLM", ("GraniteMoeDecoderLayer",), "single", LOCAL
    ),
    "granite_moe_shared": TextModel(
        "GraniteMoeSharedForCausalLM",
        ("GraniteMoeSharedDecoderLayer",),
        "single",
        {**LOCAL, "shared_intermediate_size": 64},
    ),
    "opt": TextModel(
        "OPTForCausalLM",
        ("OPTDecoderLayer",),
        "single",
        {"ffn_dim": 128, "word_embed_proj_dim": 64},
        "model.decoder.layers",
    ),
}

FOREIGN: dict[str, TextModel] = {
    "arcee": _foreign("Arcee"),
    "glm": _foreign("Glm", HALF_ROTARY),
    "gpt_bigcode": _foreign(
        "GPTBigCode", GPT, layer="GPTBigCodeBlock", path="transformer.h"
    ),
    # vLLM would believe the config that there are fewer heads of keys.
    "gpt_neox": _foreign(
        "GPTNeoX",
        layer="GPTNeoXLayer",
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
    # Not every architecture's weights are all set at random below.
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
