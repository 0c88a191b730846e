# SPDX-License-Identifier: Apache-2.0
"""Ask many questions about one picture in a single forward pass.

The picture's tokens come first, then every question as a block of its own. A block
sees the picture and itself, at the positions it would have alone, so each answer is
that of a separate prompt while the picture is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.concepts import decoder_layer_idx
from vllm_sauce.errors import ConfigError
from vllm_sauce.models.families import (
    connector,
    decoder_layers,
    image_token_id,
    language_model,
)
from vllm_sauce.models.site_hooks import SiteFn


@dataclass(frozen=True, slots=True)
class Sheet:
    """The questions about each picture as tokens."""

    prefix_ids: Tensor
    """Prompt up to the last image token, the same for all. [prefix_len] int64"""
    suffix_ids: Tensor
    """Blocks, padded on the right. [num_pictures, num_blocks, block_len] int64"""
    read_block: Tensor
    """Block each answer is read in. [num_reads] int64"""
    read_at: Tensor
    """Token of the block whose next token is the answer. [num_pictures, num_reads]"""
    pad_id: int = 0
    """Token that fills blocks up."""

    def rows(self, index: Tensor) -> Sheet:
        """Return the sheet of some of the pictures."""
        return replace(
            self, suffix_ids=self.suffix_ids[index], read_at=self.read_at[index]
        )

    def __len__(self) -> int:
        return len(self.suffix_ids)


class SharedPrefix:
    """Runs sheets through a transformers LLaVA in float32."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.layers = decoder_layers(model)
        self.image_token_id = image_token_id(model.config)

    def embed(self, sheet: Sheet, vision: Tensor) -> Tensor:
        """Return the language model's input.

        Shapes: vision [num_pictures, patches, d_model] -> [num_pictures, T, d_text]
        """
        is_image = sheet.prefix_ids == self.image_token_id
        if int(is_image.sum()) != vision.shape[1]:
            raise ConfigError(
                f"the prompt has {int(is_image.sum())} image tokens, "
                f"the picture {vision.shape[1]} patches"
            )
        words = self.model.get_input_embeddings()
        ids = torch.where(is_image, 0, sheet.prefix_ids)
        prefix = words(ids).expand(len(sheet), -1, -1).clone()
        prefix[:, is_image] = connector(self.model)(vision)
        return torch.cat([prefix, words(sheet.suffix_ids).flatten(1, 2)], dim=1)

    def layout(self, sheet: Sheet) -> tuple[Tensor, Tensor]:
        """Return positions [1, T] and which token sees which [1, 1, T, T] bool.

        The mask is causal, but no block sees another.
        """
        prefix_len = len(sheet.prefix_ids)
        num_blocks, block_len = sheet.suffix_ids.shape[1:]
        every = torch.arange(prefix_len + block_len, device=sheet.suffix_ids.device)
        positions = torch.cat(
            [every[:prefix_len], every[prefix_len:].repeat(num_blocks)]
        )
        at = torch.arange(len(positions), device=positions.device)
        # -1 for the picture's tokens, which come before all blocks.
        block = ((at - prefix_len) // block_len).clamp(min=-1)
        same = (block[:, None] == block) | (block == -1)
        return positions[None], same.tril()[None, None]

    def run_layers(
        self,
        sheet: Sheet,
        hidden: Tensor,
        edits: Mapping[str, SiteFn],
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """Return the residual stream after layers ``start`` up to ``stop``.

        Shapes: hidden [num_pictures, T, d_text] -> same
        """
        positions, mask = self.layout(sheet)
        text = language_model(self.model)
        rotary = text.rotary_emb(hidden, position_ids=positions)
        by_layer = {decoder_layer_idx(site): edit for site, edit in edits.items()}
        for layer_idx in range(start, len(self.layers) if stop is None else stop):
            out = self.layers[layer_idx](
                hidden,
                attention_mask=mask,
                position_ids=positions,
                position_embeddings=rotary,
                use_cache=False,
            )
            hidden = out[0] if isinstance(out, tuple) else out
            edit = by_layer.get(layer_idx)
            hidden = hidden if edit is None else edit(hidden)
        return hidden

    def read(self, sheet: Sheet, hidden: Tensor) -> Tensor:
        """Return the logits of the token that follows each read position.

        Shapes: hidden [num_pictures, T, d_text] -> [num_pictures, num_reads, vocab]
        """
        block_len = sheet.suffix_ids.shape[2]
        start = len(sheet.prefix_ids) + sheet.read_block * block_len
        at = start[None, :] + sheet.read_at
        picked = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[2]))
        logits: Tensor = self.model.lm_head(language_model(self.model).norm(picked))
        return logits
