# SPDX-License-Identifier: Apache-2.0
"""What is trained: a projector, and LoRA on a language model that stays as it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM

from tiny.model import D_VISION

RANK = 8
SCALE = 2.0
"""What a LoRA's product is multiplied by."""


class _FrozenProduct(torch.autograd.Function):
    """A product with weights that need no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, transposed: Tensor) -> Tensor:
        ctx.transposed = transposed
        return linear(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return linear(grad, ctx.transposed), None, None


class FrozenLinear(nn.Module):
    """A linear layer whose weights lie both ways: the backward pass is a third faster.

    Shapes: [..., d_in] -> [..., d_out]
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight = layer.weight.data.contiguous()
        self.transposed = layer.weight.data.t().contiguous()

    def forward(self, x: Tensor) -> Tensor:
        return _FrozenProduct.apply(x, self.weight, self.transposed)


class LoRALinear(nn.Module):
    """A frozen linear layer and a product of low rank beside it (arXiv:2106.09685).

    Shapes: [..., d_in] -> [..., d_out]
    """

    def __init__(self, frozen: FrozenLinear) -> None:
        super().__init__()
        d_out, d_in = frozen.weight.shape
        self.frozen = frozen
        self.A = nn.Parameter(torch.randn(RANK, d_in) * d_in**-0.5)
        self.B = nn.Parameter(torch.zeros(d_out, RANK))

    def forward(self, x: Tensor) -> Tensor:
        added = linear(linear(x, self.A.to(x.dtype)), self.B.to(x.dtype))
        return self.frozen(x) + SCALE * added


class Projector(nn.Module):
    """LLaVA's projector behind a normalisation that its first layer takes in at last.

    Shapes: [..., d_vision] -> [..., d_text]
    """

    mean: Tensor
    scale: Tensor
    spread: Tensor
    """How wide the words lie: weights of usual size then give what looks like words."""

    def __init__(self, d_text: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(D_VISION))
        self.register_buffer("scale", torch.ones(D_VISION))
        self.register_buffer("spread", torch.ones(()))
        self.linear_1 = nn.Linear(D_VISION, d_text)
        self.linear_2 = nn.Linear(d_text, d_text)

    def forward(self, hidden: Tensor) -> Tensor:
        x = self.linear_1((hidden - self.mean) / self.scale)
        return self.spread * self.linear_2(nn.functional.gelu(x))

    def folded(self) -> dict[str, Tensor]:
        """Return the weights of a LLaVA's projector that does the same."""
        weight = self.linear_1.weight / self.scale
        return {
            "linear_1.weight": weight,
            "linear_1.bias": self.linear_1.bias - weight @ self.mean,
            "linear_2.weight": self.spread * self.linear_2.weight,
            "linear_2.bias": self.spread * self.linear_2.bias,
        }


class Learner(nn.Module):
    """A projector and a language model with LoRA on its queries and values."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        language = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="eager"
        )
        language.eval().requires_grad_(False)
        self.trunk = language.model
        self.head = FrozenLinear(language.lm_head)
        self.projector = Projector(language.config.hidden_size)
        for layer in self.trunk.layers:
            for block in (layer.self_attn, layer.mlp):
                for name, child in list(block.named_children()):
                    if isinstance(child, nn.Linear):
                        setattr(block, name, FrozenLinear(child))

    def add_lora(self) -> None:
        """Put LoRA on the queries and values of every layer."""
        for layer in self.trunk.layers:
            attention = layer.self_attn
            attention.q_proj = LoRALinear(attention.q_proj)
            attention.v_proj = LoRALinear(attention.v_proj)

    def loras(self) -> Iterator[tuple[str, LoRALinear]]:
        """Yield every LoRA with the name of its layer, such as ``layers.0.q``."""
        for number, layer in enumerate(self.trunk.layers):
            yield f"layers.{number}.q", layer.self_attn.q_proj
            yield f"layers.{number}.v", layer.self_attn.v_proj

    @property
    def words(self) -> Tensor:
        """The word embeddings. Shape [vocab_size, d_text]."""
        return self.trunk.embed_tokens.weight

    def forward(
        self, ids: Tensor, positions: Tensor, mask: Tensor, image: Tensor, start: int
    ) -> Tensor:
        """Return the last hidden states; the first rows have a picture at ``start``.

        Shapes: ids and positions [rows, length], mask [rows, 1, length, length],
        image [pictures, num_patches, d_vision] -> [rows, length, d_text]
        """
        embeds = self.trunk.embed_tokens(ids)
        seen = self.projector(image).to(embeds.dtype)
        rows, patches = seen.shape[:2]
        shown = torch.cat(
            [embeds[:rows, :start], seen, embeds[:rows, start + patches :]], 1
        )
        return self.trunk(
            inputs_embeds=torch.cat([shown, embeds[rows:]]),
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
