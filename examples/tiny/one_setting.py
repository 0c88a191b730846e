# SPDX-License-Identifier: Apache-2.0
"""Write a bundle in which all concepts are edited alike: no calibration.

``PYTHONPATH=examples python -m tiny.one_setting BUNDLE SELECTION OUT``, of the vision
site and what ``sauce select`` wrote for it. A concept's row, where it has one: towards
absence where there is such a row, else towards others, where a token reads at least six
tenths of what the concept's mean does (``--absence``, ``--others``, ``--gate``).
Else its latents, turned to -2 of themselves wherever they fire; ``--random`` takes as
many others.
"""

import argparse
import random
from pathlib import Path

from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import VISION, Catalogue, Concept, SiteEdit
from vllm_sauce.learning.selection.selection_file import SelectedConcept, SelectionFile

KINDS = ("row:absence", "row:others")
GAMMA = -2.0


def edit_of(
    concept: SelectedConcept,
    absence: float = 1.25,
    others: float = 1.5,
    gate: float = 0.6,
) -> SiteEdit:
    """Return the edit of a concept's row, or of its latents.

    ``absence`` and ``others``: of what a row of that kind reads, taken away.
    """
    rows = {next(iter(row.scores)): row for row in concept.rows}
    if not rows:
        return SiteEdit.uniform([one.latent for one in concept.latents], gamma=GAMMA)
    kind = next(kind for kind in KINDS if kind in rows)
    share = absence if kind == KINDS[0] else others
    return SiteEdit.uniform([rows[kind].latent], gamma=1 - share, gate=gate)


def at_random(name: str, edit: SiteEdit, d_sae: int) -> SiteEdit:
    """Return an edit of as many latents that nobody chose."""
    drawn = random.Random(name).sample(range(d_sae), len(edit.latents))
    return SiteEdit.uniform(drawn, gamma=GAMMA)


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("bundle", "selection", "out"):
        parser.add_argument(name, type=Path)
    for name in ("absence", "others", "gate"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--random", action="store_true")
    arguments = parser.parse_args()
    told = {name: getattr(arguments, name) for name in ("absence", "others", "gate")}
    setting = {name: value for name, value in told.items() if value is not None}
    bundle = Bundle.load(arguments.bundle)
    sae, concepts = bundle.sites[VISION].weights, []
    for name, one in SelectionFile.read(arguments.selection).concepts.items():
        edit = edit_of(one, **setting)
        if arguments.random:
            edit = at_random(name, edit, sae.d_sae)
        concepts.append(Concept(name=name, domain=one.domain, edits={VISION: edit}))
    built = Bundle.build(bundle.fingerprint, {VISION: sae}, Catalogue(concepts))
    built.save(arguments.out)


if __name__ == "__main__":
    main()
