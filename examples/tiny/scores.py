# SPDX-License-Identifier: Apache-2.0
"""Print how well sauce-tiny forgets each concept, and what it costs elsewhere.

``PYTHONPATH=examples python -m tiny.scores`` prints what the bundle holds;
``--measure`` computes it anew on the scoring pictures; ``--fp8`` does so with rows in
fp8, as ``--sauce-pool-dtype fp8`` serves them. ``--out`` writes the bundle with what
was computed, the SAEs' figures among it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from tiny.exam import LATENTS_FOLDER, Tiny
from tiny.report import (
    GOOD,
    Row,
    good_concepts,
    markdown,
    rows_of,
    table,
    to_json,
    with_results,
)
from tiny.sae_figures import measure_saes
from tiny.scoring import SCORED_PICTURES, Scorer
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Catalogue, Concept

ROOT = Path(__file__).parents[2]


def measure(
    bundle: Bundle, names: list[str], pictures: int, style: str, *, fp8: bool = False
) -> Catalogue:
    """Return the catalogue's concepts with scores measured now."""
    scorer = Scorer(Tiny.load(), style=style)
    saes = {site: sae.weights for site, sae in bundle.sites.items()}
    measured = []
    for name in track(names, "concepts"):
        concept = bundle.catalogue.concept(name)
        measured.append(
            Concept(
                name=name,
                domain=concept.domain,
                edits=concept.edits,
                provenance=concept.provenance,
                scores=scorer.scores(concept, saes, pictures, fp8=fp8),
            )
        )
    return Catalogue(measured)


def write_bundle(bundle: Bundle, catalogue: Catalogue, out: Path) -> Bundle:
    """Write a bundle anew with measured scores and figures."""
    saes = {site: sae.weights for site, sae in bundle.sites.items()}
    figures = measure_saes(Tiny.load(), saes)
    measured = Bundle.build(bundle.fingerprint, saes, catalogue, figures)
    measured.save(out)
    return measured


def update_pages(bundle: Bundle, rows: Sequence[Row]) -> None:
    """Write the figures into docs/study.md."""
    good = good_concepts(rows)
    summary = (
        f"Mean HM over {rows[-1].note}: **{rows[-1].values[-1]:.3f}**. "
        f"At least {GOOD:.0%} on all four scores: {len(good)} concepts.\n\n"
    )
    names = f"Those {len(good)}, best first: {', '.join(good)}.\n\n"
    saes = "| SAE | latents | L0 | explained variance | dead |\n"
    saes += "|---|---:|---:|---:|---:|\n"
    for site, sae in bundle.sites.items():
        figures = {name: value or 0.0 for name, value in sae.entry.activation.items()}
        saes += (
            f"| {site}, ReLU + L1 | {sae.entry.d_sae} | {figures['l0']:.1f} "
            f"| {figures['explained_variance']:.1%} | {figures['dead_share']:.1%} |\n"
        )
    page = ROOT / "docs" / "study.md"
    text = summary + names + saes + "\n" + markdown(rows)
    page.write_text(with_results(page.read_text(), text))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=LATENTS_FOLDER)
    parser.add_argument("--measure", action="store_true", help="compute anew")
    parser.add_argument("--fp8", action="store_true", help="rows in fp8; computes anew")
    parser.add_argument("--style", choices=("train", "held-out"), default="train")
    parser.add_argument("--pictures", type=int, default=SCORED_PICTURES)
    parser.add_argument("--concepts", nargs="+", default=None)
    parser.add_argument("--out", type=Path, default=None, help="bundle to write")
    parser.add_argument("--json", type=Path, default=None, help="also write data")
    parser.add_argument("--pages", action="store_true", help="update the documents")
    arguments = parser.parse_args()
    bundle = Bundle.load(arguments.bundle)
    names = arguments.concepts or list(bundle.catalogue)
    if arguments.measure or arguments.fp8 or arguments.style != "train":
        catalogue = measure(
            bundle, names, arguments.pictures, arguments.style, fp8=arguments.fp8
        )
    else:
        catalogue = Catalogue(bundle.catalogue.concept(name) for name in names)
    if arguments.out is not None:
        if not arguments.measure or arguments.fp8 or arguments.concepts:
            parser.error("--out needs --measure of all concepts as they are served")
        bundle = write_bundle(bundle, catalogue, arguments.out)
    rows = rows_of(catalogue)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(to_json(rows), indent=1) + "\n")
    if arguments.pages:
        update_pages(bundle, rows)
    console = Console()
    console.print(table(rows, "sauce-tiny: one concept forgotten at a time"))
    good = good_concepts(rows)
    console.print(f"all four at least {GOOD:.0%}: {len(good)}: {', '.join(good)}")
    for site, sae in bundle.sites.items():
        console.print(f"{site}: {sae.entry.d_sae} latents, {sae.entry.activation}")


if __name__ == "__main__":
    main()
