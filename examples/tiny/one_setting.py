# SPDX-License-Identifier: Apache-2.0
"""Write a bundle in which every concept has one row with one setting: no calibration.

``PYTHONPATH=examples python -m tiny.one_setting ROWS SELECTION OUT``, of what ``sauce
fit`` and ``sauce select`` wrote for the vision site. Towards absence where there is
such a row, above .99 of the tokens without the concept; else towards others, above .95.
"""

import argparse
from pathlib import Path

from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import VISION, Catalogue, Concept, SiteEdit
from vllm_sauce.learning.calibration.edits import GATE_MARGIN
from vllm_sauce.learning.selection.selection_file import SelectedConcept, SelectionFile

SHARE = 1.25
"""Of what a row reads, taken away."""
GATES = {"row:absence": "0.99", "row:others": "0.95"}


def edit_of(concept: SelectedConcept) -> SiteEdit:
    """Return the edit of a concept's row."""
    rows = {next(iter(row.scores)): row for row in concept.rows}
    kind = next(kind for kind in GATES if kind in rows)
    row = rows[kind]
    gate = (1 + GATE_MARGIN) * row.quiet[GATES[kind]]
    return SiteEdit.uniform([row.latent], gamma=1 - SHARE, gate=gate)


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
