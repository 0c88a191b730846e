# SPDX-License-Identifier: Apache-2.0
"""Write a bundle in which every concept has the same setting: no calibration.

``PYTHONPATH=examples python -m smol.one_setting LEARNT OUT``, of the folder
``bundle.learn`` that ``sauce learn`` left. At the tower and behind layer 12 what a row
reads is taken away twice, from half of the concept's mean on: towards pictures without
anything of its domain where there are such, else towards others.
"""

import argparse
from pathlib import Path

from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import VISION, Catalogue, Concept, SiteEdit
from vllm_sauce.learning.selection.selection_file import SelectedConcept, SelectionFile

SITES = (VISION, "decoder.12")
KINDS = ("row:absence", "row:others")
SHARE, GATE = 2.0, 0.5


def edit_of(concept: SelectedConcept) -> SiteEdit:
    """Return the edit of a concept's row at a site."""
    rows = {next(iter(row.scores)): row for row in concept.rows}
    kind = next(kind for kind in KINDS if kind in rows)
    return SiteEdit.uniform([rows[kind].latent], gamma=1 - SHARE, gate=GATE)


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("learnt", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    rows, edits = {}, {}
    for site in SITES:
        rows[site] = Bundle.load(arguments.learnt / f"rows-{site}")
        path = arguments.learnt / f"selection-{site}.json"
        edits[site] = SelectionFile.read(path).concepts
    concepts = [
        Concept(
            name=name,
            domain=one.domain,
            edits={site: edit_of(edits[site][name]) for site in SITES},
        )
        for name, one in edits[VISION].items()
    ]
    saes = {site: bundle.sites[site].weights for site, bundle in rows.items()}
    fingerprint = rows[VISION].fingerprint
    Bundle.build(fingerprint, saes, Catalogue(concepts)).save(arguments.out)


if __name__ == "__main__":
    main()
