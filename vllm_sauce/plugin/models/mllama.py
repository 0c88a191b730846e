# SPDX-License-Identifier: Apache-2.0
"""Llama 3.2 Vision, which vLLM has not served since 0.10.2.

transformers' tower, vLLM's layers of Llama and its cross-attention, whose keys are
cached once a picture.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MllamaVisionModel
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_sauce.plugin.models.mllama_processor import (
    IMAGE,
    MllamaDummyInputs,
    MllamaInfo,
    MllamaProcessor,
)
from vllm_sauce.plugin.models.mllama_text import MllamaTextModel, Step


@MULTIMODAL_REGISTRY.register_processor(
    MllamaProcessor, info=MllamaInfo, dummy_inputs=MllamaDummyInputs
)
class MllamaForConditionalGeneration(nn.Module, SupportsMultiModal):
    """The whole model, under the name that its config.json has for it."""

    packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    # The longer names first, of which the shorter ones are a beginning.
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.": "language_model.",
            "model.vision_model.": "vision_model.",
            "model.multi_modal_projector.": "multi_modal_projector.",
            "language_model.model.": "language_model.",
            "language_model.lm_head.": "lm_head.",
        }
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Return what stands for a picture in a chat without a template for it."""
        return IMAGE if modality.startswith("image") else None

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.config = config = vllm_config.model_config.hf_config
        text, vision = config.text_config, config.vision_config
        vllms: Any = self  # of whose types vLLM tells nothing
        with vllms._mark_tower_model(vllm_config, "image"):
            self.vision_model = MllamaVisionModel(vision)
            self.multi_modal_projector = nn.Linear(
                vision.vision_output_dim, text.hidden_size, bias=True
            )
        with vllms._mark_language_model(vllm_config):
            self.language_model = MllamaTextModel(
                vllm_config=vllm_config, prefix="language_model"
            )
        self.lm_head = ParallelLMHead(
            text.vocab_size,
            text.hidden_size,
            quant_config=vllm_config.quant_config,
            prefix="lm_head",
        )
        self.logits_processor = LogitsProcessor(text.vocab_size)

    def embed_multimodal(self, **kwargs: Any) -> tuple[Tensor, ...]:
        """Encode pictures, all of their tiles; shorter ones are filled up.

        Shapes: pixel_values [num_pictures, 1, max_num_tiles, 3, side, side]
            -> num_pictures times [tokens_per_picture, d_model]
        """
        features = self.vision_model(
            pixel_values=kwargs["pixel_values"].to(self.multi_modal_projector.weight),
            aspect_ratio_ids=kwargs["aspect_ratio_ids"],
            aspect_ratio_mask=kwargs["aspect_ratio_mask"],
        ).last_hidden_state
        return tuple(self.multi_modal_projector(features).flatten(1, 3))

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: list[Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Run the language model. Shapes: [num_tokens] -> [num_tokens, d_model]"""
        num_tokens, step = len(positions), Step.now(self.language_model)
        if step is None:
            sees = torch.ones_like(positions, dtype=torch.bool).unsqueeze(1)
            return self.language_model(input_ids, positions, sees)
        sees = step.sees(num_tokens)
        if not encoder_outputs:
            return self.language_model(input_ids, positions, sees)
        token = self.config.image_token_index
        states = torch.stack(list(encoder_outputs))
        pictures = step.pictures(states, input_ids, positions, sees, token)
        return self.language_model(input_ids, positions, sees, pictures)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return logits. Shapes: [num_tokens, d_model] -> [num_tokens, vocabulary]"""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load a checkpoint of Meta's names, or of those that transformers writes."""
        loader = AutoWeightsLoader(self)
        return loader.load_weights(weights, mapper=self.hf_to_vllm_mapper)
