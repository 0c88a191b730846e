# SPDX-License-Identifier: Apache-2.0
"""The language model of Llama 3.2 Vision, on vLLM's cache for cross-attention.

As in transformers, text before ``<|image|>`` attends to the picture, too: without a
mask, so to the tiles that only pad it, and without the layer's MLP. The cache holds
what all later text sees, the real tiles; so the rest is there in the step that encodes
the picture, which is never a part of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.compilation.decorators import support_torch_compile
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention import CrossAttention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, RowParallelLinear
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaMLP
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.v1.attention.backend import AttentionType

from vllm_sauce.errors import CanaryError

WORDS_OF_ITS_OWN = 8
"""Rows of the embedding beyond the vocabulary, ``<|image|>`` among them; transformers
has the number so, too."""

# Only self-attention has the three in one: the keys of pictures are not the text's.
_STACKED = WeightsMapper(
    orig_to_new_stacked={
        ".self_attn.q_proj": (".self_attn.qkv_proj", "q"),
        ".self_attn.k_proj": (".self_attn.qkv_proj", "k"),
        ".self_attn.v_proj": (".self_attn.qkv_proj", "v"),
        ".gate_proj": (".gate_up_proj", 0),
        ".up_proj": (".gate_up_proj", 1),
    }
)


class Pictures(NamedTuple):
    """The pictures that are encoded in this step, for the layers that read them."""

    states: Tensor
    """[num_pictures, tokens_per_picture, d_model]: all tiles, those of padding last."""

    cached: Tensor
    """[num_rows] of the flat states: real tiles."""

    reads: Tensor
    """[num_tokens, 1] bool: tokens that stand at or behind a picture."""

    before: tuple[tuple[slice, int], ...]
    """Tokens before a picture that has tiles of padding, and which picture it is."""


class MllamaTextCrossAttention(nn.Module):
    """Attention of text to the rows of a picture."""

    def __init__(self, config: Any, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.head_dim = config.hidden_size // self.num_heads
        quant, d_model = vllm_config.quant_config, config.hidden_size

        def column(name: str, heads: int) -> Any:
            return ColumnParallelLinear(
                d_model,
                heads * self.head_dim,
                bias=False,
                return_bias=False,
                quant_config=quant,
                prefix=f"{prefix}.{name}",
            )

        self.q_proj = column("q_proj", self.num_heads)
        self.k_proj = column("k_proj", self.num_kv_heads)
        self.v_proj = column("v_proj", self.num_kv_heads)
        self.o_proj = RowParallelLinear(
            self.num_heads * self.head_dim,
            d_model,
            bias=False,
            return_bias=False,
            quant_config=quant,
            prefix=f"{prefix}.o_proj",
        )
        self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.attn = CrossAttention(
            self.num_heads,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=self.num_kv_heads,
            cache_config=vllm_config.cache_config,
            quant_config=quant,
            prefix=f"{prefix}.attn",
            attn_type=AttentionType.ENCODER_DECODER,
        )

    def forward(self, hidden_states: Tensor, pictures: Pictures | None) -> Tensor:
        """Attend. Shapes: hidden_states [num_tokens, d_model], same out"""
        q = self.q_proj(hidden_states).view(-1, self.num_heads, self.head_dim)
        q = self.q_norm(q)
        if pictures is None:
            return self.o_proj(self.attn(q.flatten(1), None, None))
        states = pictures.states.flatten(0, 1)
        k = self.k_proj(states).view(-1, self.num_kv_heads, self.head_dim)
        k, v = self.k_norm(k), self.v_proj(states).view_as(k)
        real = pictures.cached
        attended = self.attn(q.flatten(1), k[real].flatten(1), v[real].flatten(1))
        each = (len(pictures.states), -1, *k.shape[1:])
        k, v = k.view(each), v.view(each)
        for tokens, picture in pictures.before:
            attended[tokens] = _attend(q[tokens], k[picture], v[picture])
        return self.o_proj(attended)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to all there is. Shapes: [rows, heads, head_dim] -> [num_q, d_model]"""
    q, k, v = (one.transpose(0, 1).unsqueeze(0) for one in (q, k, v))
    found = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    return found[0].transpose(0, 1).flatten(1)


class MllamaCrossAttentionDecoderLayer(nn.Module):
    """A layer that lets text see a picture, and leaves other text as it is."""

    def __init__(self, config: Any, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        self.cross_attn = MllamaTextCrossAttention(
            config, vllm_config, f"{prefix}.cross_attn"
        )
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(
            config.hidden_size, eps=config.rms_norm_eps
        )
        self.mlp = LlamaMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.mlp",
        )
        self.cross_attn_attn_gate = nn.Parameter(torch.zeros(1))
        self.cross_attn_mlp_gate = nn.Parameter(torch.zeros(1))

    def forward(
        self, hidden_states: Tensor, sees: Tensor, pictures: Pictures | None = None
    ) -> Tensor:
        """Run the layer. Shapes: [num_tokens, d_model]; sees [num_tokens, 1] bool"""
        reads = sees if pictures is None else pictures.reads
        # Not a product: attention over no keys may be what is not a number.
        attended = self.cross_attn(self.input_layernorm(hidden_states), pictures)
        attended = torch.where(sees, attended, 0.0)
        hidden_states = hidden_states + self.cross_attn_attn_gate.tanh() * attended
        inner = self.mlp(self.post_attention_layernorm(hidden_states))
        inner = torch.where(reads, inner, 0.0)
        return hidden_states + self.cross_attn_mlp_gate.tanh() * inner


# What depends on the forward context is made outside: it would be traced once.
@support_torch_compile(
    dynamic_arg_dims={"input_ids": 0, "positions": 0, "sees": 0},
)
class MllamaTextModel(nn.Module):
    """Layers of Llama 3.1, and layers of cross-attention between them."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config.text_config
        self.embed_tokens = VocabParallelEmbedding(
            config.vocab_size + WORDS_OF_ITS_OWN, config.hidden_size
        )
        self.crossing = sorted(config.cross_attention_layers)
        self.layers = nn.ModuleList(
            MllamaCrossAttentionDecoderLayer(
                config, vllm_config, f"{prefix}.layers.{i}"
            )
            if i in self.crossing
            else LlamaDecoderLayer(vllm_config, f"{prefix}.layers.{i}", config=config)
            for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Embed tokens. Shapes: [num_tokens] -> [num_tokens, d_model]"""
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        sees: Tensor,
        pictures: Pictures | None = None,
    ) -> Tensor:
        """Run all layers. Shapes: [num_tokens] -> [num_tokens, d_model]"""
        hidden_states = self.embed_tokens(input_ids)
        for i, layer in enumerate(self.layers):
            if i in self.crossing:
                hidden_states = layer(hidden_states, sees, pictures)
            else:
                hidden_states, residual = layer(positions, hidden_states, None)
                hidden_states = hidden_states + residual
        return self.norm(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load tensors of transformers' names; return those of ours that are full."""
        loader = AutoWeightsLoader(self)
        return loader.load_weights(weights, mapper=_STACKED)


class Step(NamedTuple):
    """What vLLM says of the requests of a step."""

    query_start_loc: Tensor
    """[num_reqs + 1]"""

    encoder_lens: Tensor
    """[num_reqs]: rows of each request's picture in the cache, 0 without one."""

    @classmethod
    def now(cls, layers: MllamaTextModel) -> Step | None:
        """Read the forward context; None for a dummy step that attends to nothing."""
        metadata = get_forward_context().attn_metadata
        if not isinstance(metadata, dict):
            return None
        name = layers.layers[layers.crossing[0]].cross_attn.attn.layer_name
        return cls(metadata[name].query_start_loc, metadata[name].seq_lens)

    def sees(self, num_tokens: int) -> Tensor:
        """Say which tokens' requests have a picture. Shapes: -> [num_tokens, 1]

        Without a copy to the host, so that a graph can be captured of it.
        """
        tokens = torch.arange(num_tokens, device=self.query_start_loc.device)
        ends = self.query_start_loc[1:].to(tokens.dtype).contiguous()
        request = torch.searchsorted(ends, tokens, right=True)
        lens = self.encoder_lens[: len(ends)]
        seen = lens[request.clamp(max=len(lens) - 1)] > 0
        return (seen & (request < len(lens))).unsqueeze(1)

    def pictures(
        self,
        states: Tensor,
        input_ids: Tensor,
        positions: Tensor,
        sees: Tensor,
        image_token: int,
    ) -> Pictures:
        """Match the pictures that were encoded with the requests that begin.

        Shapes: states [num_pictures, tokens_per_picture, d_model], the pictures in the
            order of the batch; input_ids, positions [num_tokens]
        Raises: CanaryError
        """
        starts, lens = self.query_start_loc.tolist(), self.encoder_lens.tolist()
        spans = zip(starts, starts[1:], lens, strict=False)
        firsts = positions[self.query_start_loc[:-1].long()].tolist()
        begin = [
            span
            for span, first in zip(spans, firsts, strict=False)
            if first == 0 and span[2] > 0 and span[1] > span[0]
        ]
        if len(begin) != len(states):
            raise CanaryError(
                f"{len(states)} pictures were encoded for {len(begin)} prompts; "
                "refusing to guess which is whose"
            )
        rows, reads, before = states.shape[1], sees.clone(), []
        for picture, (start, end, length) in enumerate(begin):
            found = (input_ids[start:end] == image_token).nonzero().flatten().tolist()
            word = start + (found[0] if found else 0)
            reads[start:word] = False
            if word > start and length < rows:
                before.append((slice(start, word), picture))
        cached = [
            torch.arange(length, device=states.device) + picture * rows
            for picture, (_, _, length) in enumerate(begin)
        ]
        return Pictures(states, torch.cat(cached), reads, tuple(before))
