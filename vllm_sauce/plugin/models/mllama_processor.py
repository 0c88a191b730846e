# SPDX-License-Identifier: Apache-2.0
"""How vLLM reads prompts and pictures of Llama 3.2 Vision.

For vLLM it is an encoder-decoder model, as Whisper is: the picture is the encoder's
whole input, the prompt the decoder's, and ``<|image|>`` in it one token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseProcessingInfo,
    EncDecMultiModalProcessor,
    PromptReplacement,
)

IMAGE: Final = "<|image|>"
_FIELDS: Final = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask")


def tokens_per_tile(config: Any) -> int:
    """Return the rows of a tile: its patches and a class token."""
    vision = config.vision_config
    return int(vision.image_size // vision.patch_size) ** 2 + 1


def tokens_per_picture(config: Any) -> int:
    """Return the rows of a picture of all tiles that a model takes."""
    return int(config.vision_config.max_num_tiles) * tokens_per_tile(config)


class MllamaInfo(BaseProcessingInfo):
    """What there is to know before a prompt comes."""

    # The encoder's input is longer than a prompt may be.
    skip_prompt_length_check = True

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Return how many pictures a request may have."""
        return {"image": 1}

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Return the most rows that a picture has in the cross-attention's cache."""
        return {"image": tokens_per_picture(self.get_hf_config())}


class MllamaDummyInputs(BaseDummyInputsBuilder[MllamaInfo]):
    """A picture of all tiles, which vLLM profiles with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Return a prompt of nothing but pictures."""
        return IMAGE * mm_counts.get("image", 0)

    def get_dummy_mm_data(
        self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any = None
    ) -> Any:
        """Return a picture of two by two tiles, or as many as there may be."""
        vision = self.info.get_hf_config().vision_config
        high, wide = max(vision.supported_aspect_ratios, key=lambda it: it[0] * it[1])
        return {
            "image": self._get_dummy_images(
                width=wide * vision.image_size,
                height=high * vision.image_size,
                num_images=mm_counts.get("image", 0),
            )
        }


class MllamaProcessor(EncDecMultiModalProcessor[MllamaInfo]):
    """Makes the encoder's input of a picture, and leaves the prompt as it is."""

    skip_decoder_start_token = True

    def _get_hf_mm_text(self, mm_counts: Mapping[str, int]) -> str | None:
        return self.dummy_inputs.get_dummy_text(mm_counts)

    def create_encoder_prompt(self, prompt: list[int], mm_items: Any) -> list[int]:
        """Return one token, which the picture's rows are to stand for.

        Raises: ValueError unless the prompt says where its one picture is
        """
        wanted = int(self.info.get_hf_config().image_token_index)
        # Not while vLLM profiles, with a picture alone.
        words = prompt.count(wanted)
        if prompt and words != 1:
            raise ValueError(
                f"the prompt has {words} {IMAGE} and the request one picture, the most "
                f"that is read here; write {IMAGE} once, where the picture is to be "
                "seen from"
            )
        return [0]

    def _get_mm_fields_config(
        self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]
    ) -> Mapping[str, MultiModalFieldConfig]:
        return {name: MultiModalFieldConfig.batched("image") for name in _FIELDS}

    def _get_prompt_updates(
        self,
        mm_items: Any,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: Any,
    ) -> Sequence[PromptReplacement]:
        rows = tokens_per_tile(self.info.get_hf_config())

        def cached(index: int) -> list[int]:
            """Stand for the tiles that are no padding: those go into the cache."""
            tiles = out_mm_kwargs["image"][index]["aspect_ratio_mask"].data
            return [0] * (int(tiles.sum()) * rows)

        return [PromptReplacement(modality="image", target=[0], replacement=cached)]
