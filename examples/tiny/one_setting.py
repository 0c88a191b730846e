# SPDX-License-Identifier: Apache-2.0
"""Write a bundle in which every concept has one row with one setting: no calibration.

``PYTHONPATH=examples python -m tiny.one_setting ROWS SELECTION OUT``, of what ``sauce
fit --orthogonal`` and ``sauce select`` wrote for the vision site. Towards absence where
there is such a row, else towards others; where a token reads at least half of what the
concept's mean does.
"""

import argparse
from pathlib import Path

from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import VISION, Catalogue, Concept, SiteEdit
from vllm_sauce.learning.selection.selection_file import SelectedConcept, SelectionFile

SHARES = {"row:absence": 1.0, "row:others": 1.5}
"""Of what a row reads, taken away."""
GATE = 0.5


def edit_of(concept: SelectedConcept) -> SiteEdit:
    """Return the edit of a concept's row."""
    rows = {next(iter(row.scores)): row for row in concept.rows}
    kind = next(kind for kind in SHARES if kind in rows)
    return SiteEdit.uniform([rows[kind].latent], gamma=1 - SHARES[kind], gate=GATE)


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("rows", "selection", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    rows = Bundle.load(arguments.rows)
    concepts = [
        Concept(name=name, domain=one.domain, edits={VISION: edit_of(one)})
        for name, one in SelectionFile.read(arguments.selection).concepts.items()
    ]
    saes = {VISION: rows.sites[VISION].weights}
    Bundle.build(rows.fingerprint, saes, Catalogue(concepts)).save(arguments.out)


if __name__ == "__main__":
    main()
