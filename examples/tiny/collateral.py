# SPDX-License-Identifier: Apache-2.0
"""Which other concept suffers most when one is forgotten? Means hide it.

``PYTHONPATH=examples python -m tiny.collateral`` forgets each concept of the shipped
bundle in turn and has all others named, and confirmed by yes or no, on scoring pictures
that show them and not the forgotten one.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from tiny.concepts import CONCEPTS
from tiny.exam import LATENTS_FOLDER, Tiny, balanced_pictures, build_exam
from tiny.marking import NAME, YES, Answers, Exam
from tiny.scoring import build_edits
from tiny.sheets import answer_logits
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Concept
from vllm_sauce.models.shared_prefix import SharedPrefix
from vllm_sauce.sae import SAEWeights

LOST = (0.25, 0.5, 0.75)


def recall(exam: Exam, right: Tensor, without: int) -> Tensor:
    """Return how often each concept is recognised where ``without`` is not shown.

    Shapes: -> [num_concepts], NaN where nothing was asked
    """
    asked = ((exam.kind == NAME) | (exam.kind == YES)).expand_as(exam.about)
    asked = asked & ~exam.present[:, without, None]
    found = torch.full((len(CONCEPTS),), float("nan"))
    for concept in range(len(CONCEPTS)):
        chosen = asked & (exam.about == concept)
        if concept != without and chosen.any():
            found[concept] = right[chosen].mean()
    return found


def worst_other(
    runner: SharedPrefix,
    exam: Exam,
    plain: Tensor,
    concept: Concept,
    saes: dict[str, SAEWeights],
) -> tuple[str, float, float]:
    """Return the concept that loses most, and its recall before and after."""
    index = CONCEPTS.index(concept.name)
    logits = answer_logits(
        runner, exam.sheet, exam.vision, build_edits(saes, concept.edits)
    )
    before = recall(exam, plain, index)
    after = recall(exam, Answers.of(exam, logits).right, index)
    worst = int((before - after).nan_to_num(-1.0).argmax())
    return CONCEPTS[worst], float(before[worst]), float(after[worst])


def main() -> None:
    """Print a row a concept, and how many lose how much."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, default=LATENTS_FOLDER)
    parser.add_argument("--per-foreground", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tiny = Tiny.load()
    runner = SharedPrefix(tiny.model)
    pictures = balanced_pictures("scoring", arguments.per_foreground)
    exam = build_exam(tiny, pictures, arguments.seed)
    bundle = Bundle.load(arguments.bundle)
    saes = {site: sae.weights for site, sae in bundle.sites.items()}
    lost = []
    print("| forgotten | suffers most | recognised before % | after % |")
    print("|---|---|---:|---:|")
    with torch.inference_mode():
        logits = answer_logits(runner, exam.sheet, exam.vision, {})
        plain = Answers.of(exam, logits).right
        for concept in track(
            bundle.catalogue.values(), "concepts", console=Console(stderr=True)
        ):
            name, before, after = worst_other(runner, exam, plain, concept, saes)
            lost.append(before - after)
            print(f"| {concept.name} | {name} | {before:.0%} | {after:.0%} |")
    drops = torch.tensor(lost)
    print(f"\nMean loss of the worst other concept: {float(drops.mean()):.1%}.")
    for limit in LOST:
        count = int((drops > limit).sum())
        print(f"More than {limit:.0%} lost: for {count} of {len(lost)} concepts.")


if __name__ == "__main__":
    main()
