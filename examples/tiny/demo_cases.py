# SPDX-License-Identifier: Apache-2.0
"""Write ``demo.json``: for each of ten concepts one shipped picture that shows it all.

A demo shows what works, so its pictures are chosen: of the shipped held-out pictures
with the concept, the first on which every answer is as it must be. How well forgetting
works on pictures nobody chose is what docs/study.md measures.

``PYTHONPATH=examples python -m tiny.demo_cases dog cat ...``
"""

import json
import sys
from pathlib import Path
from typing import Any

from tiny.concepts import DOMAIN_OF
from vllm_sauce.playground.demo import Case, ask

TINY = Path(__file__).parent
CANDIDATES = 8
AT_ONCE = 8
"""Concepts that the last requests about a picture forget."""
DESCRIBE = "Describe the picture."
QUESTIONS = {
    "objects": "What object is in the picture?",
    "sports": "What sport is in the picture?",
    "emotions": "What emotion is in the picture?",
    "colours": "What color is the background?",
    "materials": "What material is the background?",
}


def cases_of(row: dict[str, Any], concept: str, others: list[str]) -> list[Case]:
    """Return the questions about one picture: what must change and what must stay."""
    file, question = row["file"], QUESTIONS[DOMAIN_OF[concept]]
    kept = next(c for c in row["concepts"] if c != concept)
    other = QUESTIONS[DOMAIN_OF[kept]]
    return [
        Case(file, question, (), must_change=False),
        Case(file, question, (concept,), must_change=True),
        Case(file, DESCRIBE, (concept,), must_change=True),
        Case(file, other, (concept,), must_change=False),
        Case(file, question, (concept, *others), must_change=True),
        Case(file, other, (concept, *others), must_change=False),
    ]


def choose(concepts: list[str]) -> list[Case]:
    """Return the demo's cases; a concept without a fitting picture is left out."""
    labels = (TINY / "pictures" / "labels.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in labels]
    groups: list[list[Case]] = []
    for i, concept in enumerate(concepts):
        others = [concepts[i - n] for n in range(1, AT_ONCE)]
        shown = [
            row
            for row in rows
            if concept in row["concepts"] and not set(others) & set(row["concepts"])
        ]
        groups += [cases_of(row, concept, others) for row in shown[:CANDIDATES]]
    answers = iter(ask(TINY, [case for group in groups for case in group]))
    chosen: dict[str, list[Case]] = {}
    for group in groups:
        right = [next(answers).right for _ in group]
        if all(right):
            chosen.setdefault(group[1].forget[0], group)
    return [case for group in chosen.values() for case in group]


def main() -> None:
    """Write the file."""
    cases = choose(sys.argv[1:])
    rows = [{**vars(case), "forget": list(case.forget)} for case in cases]
    (TINY / "demo.json").write_text(json.dumps(rows, indent=1) + "\n")
    sys.stdout.write(f"{len(rows)} cases\n")


if __name__ == "__main__":
    main()
