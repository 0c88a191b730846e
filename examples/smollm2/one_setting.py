# SPDX-License-Identifier: Apache-2.0
"""Write a bundle in which every concept has the same setting: no calibration.

``PYTHONPATH=examples python -m smollm2.one_setting LEARNT OUT``, of the folder
``bundle.learn`` that ``sauce learn`` left. At layer 12 the tokens of the concept's
words lose twice what they read, from a half on; at layer 24 those that are about to say
them lose what they read, from .4 on: twice that is more than an answer can be gone on
with.
"""

import argparse
from pathlib import Path

from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.learning.selection.selection_file import RankedLatent, SelectionFile

EARLY, LATE = "decoder.12", "decoder.24"
WORDS = {"gamma": -1.0, "gate": 0.5}
SAYING = {"gamma": 0.0, "gate": 0.4}


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("learnt", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    rows, selected = {}, {}
    for site in (EARLY, LATE):
        rows[site] = Bundle.load(arguments.learnt / f"rows-{site}")
        path = arguments.learnt / f"selection-{site}.json"
        selected[site] = SelectionFile.read(path).concepts

    def row_of(site: str, concept: str, kind: str) -> RankedLatent:
        mine = selected[site][concept].rows
        return next(row for row in mine if f"row:{kind}" in row.scores)

    concepts = []
    for name, found in selected[EARLY].items():
        words, saying = row_of(EARLY, name, "words"), row_of(LATE, name, "saying")
        edits = {
            EARLY: SiteEdit.uniform([words.latent], **WORDS),
            LATE: SiteEdit.uniform([saying.latent], **SAYING),
        }
        concepts.append(Concept(name=name, domain=found.domain, edits=edits))
    weights = {site: bundle.sites[site].weights for site, bundle in rows.items()}
    fingerprint = rows[EARLY].fingerprint
    Bundle.build(fingerprint, weights, Catalogue(concepts)).save(arguments.out)


if __name__ == "__main__":
    main()
