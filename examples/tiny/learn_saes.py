# SPDX-License-Identifier: Apache-2.0
"""Train sauce-tiny's SAEs and find what each of their latents carries."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from tiny.concepts import COLOURS, CONCEPTS, FOREGROUNDS, MATERIALS
from tiny.dataset import pixel_values, training_pictures
from tiny.exam import STYLES, Tiny, balanced_pictures, build_exam
from tiny.questions import answer_name
from tiny.world import Picture
from vllm_sauce.concepts import VISION, decoder_layer_idx
from vllm_sauce.evaluation.attribution import SiteAttribution, attribute
from vllm_sauce.evaluation.exam import Exam
from vllm_sauce.evaluation.shared_prefix import SharedPrefix
from vllm_sauce.sae import SAEWeights
from vllm_sauce.training.activations import vision_features
from vllm_sauce.training.sae_quality import sae_quality
from vllm_sauce.training.sae_trainer import SAETraining, train_sae

SLOTS = 3
"""Concepts a picture shows: foreground, colour, material."""
LONGEST_BLOCK = 13
"""Tokens of the longest question asked while calibrating."""


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """Sizes of the recipe; the defaults are those of the shipped bundle."""

    seed: int = 0
    decoder_site: str = "decoder.1"
    d_sae: int = 2048
    vision_pictures: int = 8000
    text_pictures: int = 2400
    training_tokens: int = 1_200_000
    l1_coefficient: Mapping[str, float] | None = None
    """By kind of site; None is the recipe's own."""
    selection_per_foreground: int = 16
    calibration_per_foreground: int = 40
    scoring_per_foreground: int = 40

    @property
    def sites(self) -> tuple[str, str]:
        """The two sites, the tower's first."""
        return VISION, self.decoder_site

    def training(self, site: str) -> SAETraining:
        """Return how the SAE of a site is trained."""
        l1 = dict(self.l1_coefficient or {"vision": 2.5, "decoder": 2.5})
        return SAETraining(
            d_sae=self.d_sae,
            l1_coefficient=l1[site.split(".")[0]],
            training_tokens=self.training_tokens,
            learning_rate=2e-3,
            seed=self.seed,
        )


def some_training_pictures(count: int, seed: int) -> tuple[Tensor, list[Picture]]:
    """Return pictures the model was trained on: pixels, and labels without pixels."""
    pictures = training_pictures(seed, STYLES["train"])
    rows = np.random.default_rng(seed).permutation(len(pictures))
    rows = rows[pictures.labels[rows, 0] < len(FOREGROUNDS)][:count]
    labels = [
        Picture(
            None,  # type: ignore[arg-type]
            FOREGROUNDS[f],
            COLOURS[c],
            MATERIALS[m],
            "",
            np.zeros((7, 7), np.float32),
        )
        for f, c, m in pictures.labels[rows]
    ]
    return pixel_values(pictures.images[rows]), labels


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


def train_site_sae(tiny: Tiny, site: str, config: LearnConfig, path: Path) -> None:
    """Train one site's SAE on training pictures and save it, unless it is there."""
    if path.exists():
        return
    layer_idx = decoder_layer_idx(site)
    count = config.vision_pictures if layer_idx is None else config.text_pictures
    pixels, labels = some_training_pictures(count, config.seed)
    if layer_idx is None:
        tokens = vision_features(tiny.model, pixels).flatten(0, 1)
    else:
        exam = build_exam(tiny, labels, config.seed, pixels=pixels)
        hidden = site_activations(SharedPrefix(tiny.model), exam, layer_idx)
        tokens = hidden[exam.sheet.real_tokens()]
    sae = train_sae(tokens.clone(), config.training(site))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(sae.tensors(), path)


def load_sae(path: Path) -> SAEWeights:
    """Read an SAE of ours."""
    tensors = load_file(path)
    return SAEWeights(
        W_enc=tensors["W_enc"],
        W_dec=tensors["W_dec"],
        b_enc=tensors["b_enc"],
        b_dec=tensors["b_dec"],
    )


def measure_saes(
    tiny: Tiny, saes: Mapping[str, SAEWeights], seed: int
) -> dict[str, dict[str, float]]:
    """Return each SAE's figures on pictures used for nothing else."""
    exam = build_exam(tiny, balanced_pictures("quality", 5), seed)
    runner = SharedPrefix(tiny.model)
    figures = {}
    for site, sae in saes.items():
        layer_idx = decoder_layer_idx(site)
        if layer_idx is None:
            tokens = exam.vision.flatten(0, 1)
        else:
            hidden = site_activations(runner, exam, layer_idx)
            tokens = hidden[exam.sheet.real_tokens()]
        figures[site] = sae_quality(sae, tokens).to_json()
    return figures


def concept_tokens(tiny: Tiny) -> Tensor:
    """Return the token of each concept's name. Shape [num_concepts]."""
    return torch.tensor([tiny.token(answer_name(c)) for c in CONCEPTS])


def attribute_latents(
    tiny: Tiny, saes: Mapping[str, SAEWeights], exam: Exam, path: Path
) -> dict[str, SiteAttribution]:
    """Return every latent's effects on the selection pictures, cached at ``path``."""
    if not path.exists():
        runner = SharedPrefix(tiny.model)
        tokens = concept_tokens(tiny)
        parts = [
            attribute(runner, exam.rows(index), saes, tokens, SLOTS)
            for index in track(torch.arange(len(exam)).split(32), "attribution")
        ]
        tensors = {}
        for site in saes:
            tensors[f"{site}:effects"] = torch.cat([p[site].effects for p in parts])
            tensors[f"{site}:acts"] = torch.cat([p[site].mean_acts for p in parts])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path)
    tensors = load_file(path)
    return {
        site: SiteAttribution(tensors[f"{site}:effects"], tensors[f"{site}:acts"])
        for site in saes
    }


def split_exam(tiny: Tiny, split: str, per_foreground: int, seed: int) -> Exam:
    """Return the exam of one split, in the shorter training phrasings."""
    pictures = balanced_pictures(split, per_foreground)
    return build_exam(tiny, pictures, seed, longest_block=LONGEST_BLOCK)
