# SPDX-License-Identifier: Apache-2.0
"""How well do SAEs stand for sauce-tiny's activations? On pictures of their own.

``PYTHONPATH=examples python -m tiny.sae_figures BUNDLE`` measures a bundle's SAEs on
1,000 pictures and, at decoder sites, all tokens of ten questions about each.
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tiny.concepts import DOMAIN_OF, DOMAINS
from tiny.exam import LATENTS_FOLDER, Tiny, balanced_pictures, pixels_of
from tiny.questions import (
    describe,
    describe_questions,
    naming_questions,
    yes_no_questions,
)
from tiny.world import Picture
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import decoder_layer_idx
from vllm_sauce.models.shared_prefix import SharedPrefix, Sheet
from vllm_sauce.models.site_hooks import vision_features
from vllm_sauce.sae import SAEWeights
from vllm_sauce.sae.quality import sae_quality

PICTURES_PER_FOREGROUND = 25


def sheet_of(tiny: Tiny, pictures: Sequence[Picture], seed: int) -> Sheet:
    """Return ten questions about each picture: names, yes, no, and a description."""
    rng = np.random.default_rng(seed)
    # A few hundred questions are asked of a thousand pictures.
    tokens_of = cache(tiny.block)

    def drawn(some: Sequence[str]) -> str:
        return some[int(rng.integers(len(some)))]

    pages = []
    for picture in pictures:
        there = picture.concepts
        peers = [[c for c in DOMAINS[DOMAIN_OF[one]] if c != one] for one in there]
        absent = [str(rng.choice(others)) for others in peers]
        asked = [naming_questions(DOMAIN_OF[one]) for one in there]
        asked += [yes_no_questions(one) for one in (*there, *absent)]
        page = [tokens_of(drawn(some)) for some in asked]
        pages.append([*page, tokens_of(drawn(describe_questions()), describe(picture))])
    longest = max(len(block) for page in pages for block in page)
    padded = [[[*b, *[0] * (longest - len(b))] for b in page] for page in pages]
    nothing = torch.zeros(0, dtype=torch.long)
    return Sheet(
        prefix_ids=torch.tensor(tiny.prefix_ids),
        suffix_ids=torch.tensor(padded),
        read_block=nothing,
        read_at=nothing.expand(len(pages), 0),
    )


@torch.inference_mode()
def stream_after(
    runner: SharedPrefix, sheet: Sheet, vision: Tensor, layer_idx: int
) -> Tensor:
    """Return the residual stream after a layer, of all tokens but padding.

    Shapes: vision [num_pictures, patches, d_model] -> [num_tokens, d_text]
    """
    parts = []
    rows = torch.arange(len(sheet)).split(32)
    for index in track(rows, f"decoder.{layer_idx} activations"):
        part = sheet.rows(index)
        hidden = runner.embed(part, vision[index])
        hidden = runner.run_layers(part, hidden, {}, 0, layer_idx + 1)
        prefix = torch.ones(len(part), len(part.prefix_ids), dtype=torch.bool)
        real = torch.cat([prefix, part.suffix_ids.flatten(1) != part.pad_id], dim=1)
        parts.append(hidden[real])
    return torch.cat(parts)


def measure_saes(
    tiny: Tiny,
    saes: Mapping[str, SAEWeights],
    seed: int = 0,
    per_foreground: int = PICTURES_PER_FOREGROUND,
) -> dict[str, dict[str, float]]:
    """Return each SAE's figures on pictures used for nothing else."""
    pictures = balanced_pictures("quality", per_foreground)
    sheet = sheet_of(tiny, pictures, seed)
    vision = vision_features(tiny.model, pixels_of(pictures))
    runner = SharedPrefix(tiny.model)
    figures = {}
    for site, sae in saes.items():
        layer_idx = decoder_layer_idx(site)
        if layer_idx is None:
            tokens = vision.flatten(0, 1)
        else:
            tokens = stream_after(runner, sheet, vision, layer_idx)
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
