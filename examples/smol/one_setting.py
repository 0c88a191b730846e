# SPDX-License-Identifier: Apache-2.0
"""Write a bundle in which every concept has the same setting: no calibration.

``PYTHONPATH=examples python -m smol.one_setting LEARNT OUT``, of the folder
``bundle.learn`` that ``sauce learn`` left. ``--vision`` and ``--layer`` are shares of
what a row reads that are taken away at the tower and behind layer 24, from half of the
concept's mean on; 0 leaves a site alone. Towards pictures without anything of its
domain where there are such, else towards others.
"""

import argparse
from pathlib import Path

from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import VISION, Catalogue, Concept, SiteEdit
from vllm_sauce.learning.selection.selection_file import SelectedConcept, SelectionFile

LAYER = "decoder.24"
KINDS = ("row:absence", "row:others")
GATE = 0.5


def edit_of(concept: SelectedConcept, share: float) -> SiteEdit:
    """Return the edit that takes a share of a concept's row away."""
    rows = {next(iter(row.scores)): row for row in concept.rows}
    kind = next(kind for kind in KINDS if kind in rows)
    return SiteEdit.uniform([rows[kind].latent], gamma=1 - share, gate=GATE)


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("learnt", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--vision", type=float, default=1.5)
    parser.add_argument("--layer", type=float, default=2.0)
    arguments = parser.parse_args()
    told = {VISION: arguments.vision, LAYER: arguments.layer}
    shares = {site: share for site, share in told.items() if share}
    rows, edits = {}, {}
    for site in shares:
        rows[site] = Bundle.load(arguments.learnt / f"rows-{site}")
        path = arguments.learnt / f"selection-{site}.json"
        edits[site] = SelectionFile.read(path).concepts
    concepts = [
        Concept(
            name=name,
            domain=one.domain,
            edits={s: edit_of(edits[s][name], share) for s, share in shares.items()},
        )
        for name, one in next(iter(edits.values())).items()
    ]
    saes = {site: bundle.sites[site].weights for site, bundle in rows.items()}
    fingerprint = next(iter(rows.values())).fingerprint
    Bundle.build(fingerprint, saes, Catalogue(concepts)).save(arguments.out)


if __name__ == "__main__":
    main()
