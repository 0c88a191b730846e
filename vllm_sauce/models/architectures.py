# SPDX-License-Identifier: Apache-2.0
"""The architectures: where the sites of a model are, in vLLM and in transformers.

The one list of the project. A vision-language model is a row of ``VISION_ROWS``, a
class of decoder layers a word in ``LAYERS``; docs/models.md says what was measured of
each. Nothing here is trusted at the start of a server: the canary proves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from vllm_sauce.concepts import VISION
from vllm_sauce.errors import ConfigError, UnsupportedFeatureError

Form = Literal["sum", "first", "single"]
"""What of a decoder layer's output is the residual stream: ``hidden_states`` and
``residual`` together, ``hidden_states`` alone though a second tensor stands beside it,
or the only tensor there is."""

TRANSFORMERS: Final = "transformers"

LAYERS: Final[dict[str, Form]] = {
    "AfmoeDecoderLayer": "sum",
    "ApertusDecoderLayer": "sum",
    "AriaTextDecoderLayer": "sum",
    "BloomBlock": "single",
    "Cohere2MoeDecoderLayer": "first",
    "CohereDecoderLayer": "first",
    "DeepseekV2DecoderLayer": "sum",
    "Ernie4_5_MoeDecoderLayer": "sum",
    "Exaone4DecoderLayer": "first",
    "ExaoneMoeDecoderLayer": "sum",
    "FalconDecoderLayer": "single",
    "FalconH1ParallelHybrid": "single",
    "GPT2Block": "single",
    "GPTJBlock": "single",
    "Gemma2DecoderLayer": "sum",
    "Gemma3DecoderLayer": "sum",
    "Gemma4DecoderLayer": "single",
    "GemmaDecoderLayer": "sum",
    "Glm4DecoderLayer": "sum",
    "Glm4MoeDecoderLayer": "sum",
    "Glm4MoeLiteDecoderLayer": "sum",
    "GraniteDecoderLayer": "single",
    "GraniteMoeDecoderLayer": "single",
    "GraniteMoeHybridAttentionDecoderLayer": "first",
    "GraniteMoeHybridMambaDecoderLayer": "first",
    "GraniteMoeSharedDecoderLayer": "single",
    "HyperCLOVAXDecoderLayer": "first",
    "Lfm2AttentionDecoderLayer": "sum",
    "Lfm2MoeAttentionDecoderLayer": "sum",
    "Lfm2MoeShortConvDecoderLayer": "sum",
    "Lfm2ShortConvDecoderLayer": "sum",
    "Llama4DecoderLayer": "sum",
    "LlamaDecoderLayer": "sum",
    "Mamba2DecoderLayer": "sum",
    "MistralDecoderLayer": "sum",
    "MixtralDecoderLayer": "sum",
    "MllamaCrossAttentionDecoderLayer": "single",
    "NemotronDecoderLayer": "sum",
    "NemotronHAttentionDecoderLayer": "sum",
    "NemotronHMLPDecoderLayer": "sum",
    "NemotronHMambaDecoderLayer": "sum",
    "OPTDecoderLayer": "single",
    "OlmoeDecoderLayer": "sum",
    "PhiMoEDecoderLayer": "first",
    "Qwen2DecoderLayer": "sum",
    "Qwen2MoeDecoderLayer": "sum",
    "Qwen3DecoderLayer": "sum",
    "Qwen3MoeDecoderLayer": "sum",
    "Qwen3VLDecoderLayer": "sum",
    "Qwen3VLMoeDecoderLayer": "sum",
    "Qwen3_5DecoderLayer": "sum",
    "StablelmDecoderLayer": "first",
    "TransformerBlock": "sum",
    "transformers.ArceeDecoderLayer": "single",
    "transformers.GPTBigCodeBlock": "single",
    "transformers.GPTNeoXLayer": "single",
    "transformers.GlmDecoderLayer": "single",
    "transformers.HeliumDecoderLayer": "single",
    "transformers.HunYuanDenseV1DecoderLayer": "single",
    "transformers.Olmo2DecoderLayer": "single",
    "transformers.Olmo3DecoderLayer": "single",
    "transformers.OlmoDecoderLayer": "single",
    "transformers.PhiDecoderLayer": "single",
    "transformers.SeedOssDecoderLayer": "single",
    "transformers.SmolLM3DecoderLayer": "single",
    "transformers.SolarOpenDecoderLayer": "single",
    "transformers.Starcoder2DecoderLayer": "single",
}
"""By exact class: a subclass may leave something else. "transformers." stands before
those of transformers, which vLLM runs where it has none; ``TransformerBlock`` is
gpt-oss's."""

NOT_IN_FLOAT16: Final = frozenset({"DeepseekV2DecoderLayer", "Glm4MoeLiteDecoderLayer"})
"""Layers that scale the stream there, so that it is another than in transformers."""


def _tower_width(config: Any) -> int:
    return int(config.vision_config.hidden_size)


def _concatenated(config: Any) -> int:
    """A list of layers to read makes features of all of them, side by side."""
    read = getattr(config, "vision_feature_layer", None)
    return _tower_width(config) * (len(read) if isinstance(read, list | tuple) else 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionRow:
    """Where a vision-language model's pictures enter what comes after its tower.

    The sites are the inputs of connectors, each a module whose first tensor is
    ``[..., d_model]`` of the pictures in the encoder.
    """

    model: str
    """Architecture that config.json names, which is transformers' class."""

    vllm: str = ""
    """vLLM's class, if its name is another."""

    connector: str = "multi_modal_projector"
    """Path of the module in vLLM; its input is ``vision``."""

    branches: str = ""
    """Path of a list of connectors that further layers of the tower go through, if
    there is one; their inputs are ``vision.1``, ``vision.2``, …"""

    num_branches: Callable[[Any], int] = lambda config: 0
    """Told the model's config."""

    prefix: str = "model."
    """What stands before these paths in transformers."""

    width: Callable[[Any], int] = _tower_width
    """d_model of all vision sites, told the model's config."""

    def modules(self, config: Any) -> dict[str, str]:
        """Return the path of each vision site's module in vLLM."""
        branches = {
            f"{VISION}.{i + 1}": f"{self.branches}.{i}"
            for i in range(self.num_branches(config))
        }
        return {VISION: self.connector, **branches}


def _deepstack(config: Any) -> int:
    return len(getattr(config.vision_config, "deepstack_visual_indexes", None) or ())


def _shuffled(config: Any) -> int:
    """The patches of a square side by side, before the connector's first matrix."""
    return int(_tower_width(config) / config.downsample_ratio**2)


_MERGER: Final[dict[str, Any]] = {"connector": "visual.merger"}
_DEEPSTACK: Final[dict[str, Any]] = {
    **_MERGER,
    "branches": "visual.deepstack_merger_list",
    "num_branches": _deepstack,
}
_IDEFICS: Final[dict[str, Any]] = {"connector": "model.connector", "prefix": ""}

_ROWS: Final = (
    VisionRow(model="LlavaForConditionalGeneration", width=_concatenated),
    VisionRow(model="LlavaNextForConditionalGeneration", width=_concatenated),
    VisionRow(model="LlavaOnevisionForConditionalGeneration", width=_concatenated),
    VisionRow(
        model="Qwen2VLForConditionalGeneration",
        width=lambda config: int(config.vision_config.embed_dim),
        **_MERGER,
    ),
    VisionRow(model="Qwen2_5_VLForConditionalGeneration", **_MERGER),
    VisionRow(model="Qwen3VLForConditionalGeneration", **_DEEPSTACK),
    VisionRow(model="Qwen3VLMoeForConditionalGeneration", **_DEEPSTACK),
    VisionRow(model="Qwen3_5ForConditionalGeneration", **_DEEPSTACK),
    VisionRow(
        model="InternVLForConditionalGeneration",
        vllm="InternS1ForConditionalGeneration",
        width=_shuffled,
    ),
    VisionRow(model="Mistral3ForConditionalGeneration", width=_concatenated),
    VisionRow(model="Idefics3ForConditionalGeneration", **_IDEFICS),
    VisionRow(model="SmolVLMForConditionalGeneration", **_IDEFICS),
    VisionRow(model="Gemma3ForConditionalGeneration"),
    VisionRow(model="PaliGemmaForConditionalGeneration"),
    VisionRow(
        model="Llama4ForConditionalGeneration",
        connector="vision_model.vision_adapter",
        prefix="",
    ),
    VisionRow(
        model="Glm4vForConditionalGeneration",
        width=lambda config: int(config.vision_config.out_hidden_size),
        **_MERGER,
    ),
    VisionRow(
        model="Glm4vMoeForConditionalGeneration",
        width=lambda config: int(config.vision_config.out_hidden_size),
        **_MERGER,
    ),
    VisionRow(model="Cohere2VisionForConditionalGeneration"),
    VisionRow(model="Gemma4ForConditionalGeneration", connector="embed_vision"),
    VisionRow(model="AriaForConditionalGeneration"),
    VisionRow(
        model="Lfm2VlForConditionalGeneration", vllm="Lfm2VLForConditionalGeneration"
    ),
    # The plugin's own model; its last layer and some before it, side by side.
    VisionRow(
        model="MllamaForConditionalGeneration",
        width=lambda config: int(config.vision_config.vision_output_dim),
    ),
)

VISION_ROWS: Final = {row.model: row for row in _ROWS}
"""By the architecture that config.json names."""

WHERE: Final = "docs/models.md lists what is, and how to add a row"


def known_row(config: Any) -> VisionRow | None:
    """Return the row of a model's config, None if it has none."""
    return VISION_ROWS.get(next(iter(config.architectures or ()), ""))


def vision_row(config: Any, model: str | None = None) -> VisionRow:
    """Return the row of a model's config, or of a class of transformers'.

    Raises: ConfigError for a model without a tower, UnsupportedFeatureError for one
        that has no row
    """
    named = model or next(iter(config.architectures or ()), config.model_type)
    row = VISION_ROWS.get(named)
    if row is None and not hasattr(config, "vision_config"):
        raise ConfigError(f"{named} has no vision site; name a decoder site")
    if row is None:
        raise UnsupportedFeatureError(
            f"the vision site of {named} is not proven: it has no row in the table of "
            f"architectures; {WHERE}. Its decoder layers may be editable"
        )
    return row
