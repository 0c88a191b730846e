# SPDX-License-Identifier: Apache-2.0
"""How well do SAEs stand for sauce-tiny's activations? On pictures of their own.

``PYTHONPATH=examples python -m tiny.sae_figures BUNDLE`` measures a bundle's SAEs on
1,000 pictures and all tokens of twelve questions about each.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tiny.exam import LATENTS_FOLDER, Tiny, balanced_pictures, build_exam
from tiny.marking import Exam
from tiny.sheets import real_tokens
from vllm_sauce.bundle import Bundle
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


def main() -> None:
    """Print a row for each SAE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", default=LATENTS_FOLDER)
    sites = Bundle.load(parser.parse_args().bundle).sites
    saes = {site: sae.weights for site, sae in sites.items()}
    table = Table("SAE", "latents", "L0", "explained variance", "dead")
    for site, found in measure_saes(Tiny.load(), saes).items():
        shares = (f"{found[name]:.2%}" for name in ("explained_variance", "dead_share"))
        table.add_row(site, str(saes[site].d_sae), f"{found['l0']:.2f}", *shares)
    Console().print(table)


if __name__ == "__main__":
    main()
