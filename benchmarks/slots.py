# SPDX-License-Identifier: Apache-2.0
"""What masks cost in memory: a bundle's resident rows and the tables of its slots.

``python benchmarks/slots.py examples/tiny/latents examples/tiny/bundle``
"""

from __future__ import annotations

import argparse

import torch

from vllm_sauce.bundle import Bundle
from vllm_sauce.config import SauceConfig
from vllm_sauce.unlearning.slots import SiteTable

KIB = 2**10


def slot_bytes(table: SiteTable) -> int:
    """Return the memory of all tables that a mask has a row of."""
    tensors = {
        value.data_ptr(): value.numel() * value.element_size()
        for value in vars(table).values()
        if isinstance(value, torch.Tensor) and len(value) == table.num_slots
    }
    return sum(tensors.values())


def main() -> None:
    """Print a table: a line for each site of each bundle."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--slots", type=int, default=256, help="max-num-seqs")
    parser.add_argument("--dtype", default="bfloat16", help="of the model")
    options = parser.parse_args()
    print("| bundle | site | rows | a concept | most of a mask", end=" ")
    print("| rows KiB | slots KiB |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for path in options.bundles:
        bundle = Bundle.load(path)
        for site, item in bundle.sites.items():
            rows = bundle.catalogue.latents(site)
            most = min(SauceConfig(bundle=path).max_latents, len(rows) or 1)
            groups = bundle.catalogue.token_groups(site)
            table = SiteTable(
                *(item.weights, bundle.catalogue, site),
                num_slots=options.slots * groups,
                max_latents=most,
                dtype=getattr(torch, options.dtype),
            )
            counts = [
                len(concept.edits[site].latents)
                for concept in bundle.catalogue.values()
                if site in concept.edits
            ]
            print(
                f"| {path} | {site} | {len(rows)} | {sum(counts) / len(counts):.1f} "
                f"| {most} | {table.pool_bytes / KIB:.0f} "
                f"| {slot_bytes(table) / KIB:.0f} |"
            )


if __name__ == "__main__":
    main()
