# SPDX-License-Identifier: Apache-2.0
"""How well SAEs stand for sauce-tiny's activations, on pictures of their own."""

from collections.abc import Mapping

import torch
from rich.progress import track
from torch import Tensor

from tiny.exam import Tiny, balanced_pictures, build_exam
from tiny.marking import Exam
from tiny.sheets import real_tokens
from vllm_sauce.concepts import decoder_layer_idx
from vllm_sauce.models.shared_prefix import SharedPrefix
from vllm_sauce.sae import SAEWeights
from vllm_sauce.sae.quality import sae_quality

PICTURES_PER_FOREGROUND = 25


def site_activations(runner: SharedPrefix, exam: Exam, layer_idx: int) -> Tensor:
    """Return the residual stream after a layer for every token of an exam.

    Shapes: -> [num_pictures, T, d_text]
    """
    parts = []
    with torch.inference_mode():
        for index in track(
            torch.arange(len(exam)).split(32), f"decoder.{layer_idx} activations"
        ):
            part = exam.rows(index)
            hidden = runner.embed(part.sheet, part.vision)
            hidden = runner.run_layers(part.sheet, hidden, {}, 0, layer_idx + 1)
            parts.append(hidden)
    return torch.cat(parts)


def measure_saes(
    tiny: Tiny,
    saes: Mapping[str, SAEWeights],
    seed: int = 0,
    per_foreground: int = PICTURES_PER_FOREGROUND,
) -> dict[str, dict[str, float]]:
    """Return each SAE's figures on pictures used for nothing else."""
    pictures = balanced_pictures("quality", per_foreground)
    exam = build_exam(tiny, pictures, seed)
    runner = SharedPrefix(tiny.model)
    figures = {}
    for site, sae in saes.items():
        layer_idx = decoder_layer_idx(site)
        if layer_idx is None:
            tokens = exam.vision.flatten(0, 1)
        else:
            hidden = site_activations(runner, exam, layer_idx)
            tokens = hidden[real_tokens(exam.sheet)]
        figures[site] = sae_quality(sae, tokens).to_json()
    return figures
