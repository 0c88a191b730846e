# SPDX-License-Identifier: Apache-2.0
"""Which SAE explains sauce-tiny best? All six architectures at both sites.

``PYTHONPATH=examples python -m tiny.compare_saes`` draws 800 pictures, writes the
model's activations, trains twelve SAEs of 2,048 latents on 100,000 rows each, and
prints the table of docs/train.md. One core needs about a quarter of an hour.
``--site``, ``--architecture`` and how they are trained may be chosen.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from rich import box
from rich.console import Console

from tiny.exam import Tiny
from tiny.shards import draw_samples, write_harvest
from vllm_sauce.cli.bars import training_bar
from vllm_sauce.learning.training.report import figures_table
from vllm_sauce.learning.training.settings import (
    TRAINED_ARCHITECTURES,
    HarvestTraining,
    SAETraining,
)
from vllm_sauce.learning.training.train import train_on_harvest

SITES = ["vision", "decoder.1"]


def training(architecture: str, options: argparse.Namespace) -> SAETraining:
    """Return the settings of the comparison: k 16, or what comes near it."""
    return SAETraining(
        d_sae=2048,
        architecture=architecture,
        k=16,
        l1_coefficient=2.5,
        training_tokens=options.tokens,
        batch_tokens=256,
        learning_rate=options.lr,
        aux_coefficient=options.aux,
        dead_steps=options.dead_steps,
        decoder_init_norm=options.decoder_norm,
    )


def main() -> None:
    """Harvest, train, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=800)
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--site", nargs="+", default=SITES, choices=SITES)
    names = list(TRAINED_ARCHITECTURES)
    parser.add_argument("--architecture", nargs="+", default=names, choices=names)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--aux", type=float, default=1.0)
    parser.add_argument("--dead-steps", type=int)
    parser.add_argument("--decoder-norm", type=float, default=0.1)
    options = parser.parse_args()
    console, rows = Console(), []
    folder = Path(tempfile.mkdtemp(prefix="compare-saes-"))
    try:
        samples = draw_samples(folder / "pictures", options.pictures)
        write_harvest(Tiny.load(), samples, options.site, folder / "harvest")
        for site in options.site:
            for architecture in options.architecture:
                settings = HarvestTraining(
                    harvest=folder / "harvest",
                    site=site,
                    out=folder / f"{site}-{architecture}",
                    training=training(architecture, options),
                    buffer_mib=64,
                )
                steps = settings.training.total_steps
                label = f"{architecture} at {site}"
                with training_bar(label, steps) as report:
                    rows.append(train_on_harvest(settings, report))
    finally:
        shutil.rmtree(folder)
    table = figures_table("sauce-tiny", rows)
    console.print(table)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    table.title, table.box = None, box.MARKDOWN
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
