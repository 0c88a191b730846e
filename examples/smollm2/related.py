# SPDX-License-Identifier: Apache-2.0
"""Count answers that still talk around a concept, without its word.

``PYTHONPATH=examples python -m smollm2.related RESULTS``, of a folder that ``sauce
eval`` wrote: of the answers to prompts about a concept that is forgotten, how many have
one of the words that go with it, under each method and unedited.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

from smollm2.prompts import RELATED
from vllm_sauce.evaluation.questions import mentions


def counts(answers: Path) -> dict[str, tuple[int, int]]:
    """Return by method: answers with a related word, and all answers."""
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    plain = {one["prompt"]: one["text"] for one in lines if one["method"] == "plain"}
    found: dict[str, list[bool]] = defaultdict(list)
    for one in lines:
        if one["group"] != "alone" or one["about"] not in one["forget"]:
            continue
        words = RELATED[one["about"]]
        found[one["method"]].append(mentions(one["text"], words))
        if one["method"] == "ours":
            found["plain"].append(mentions(plain[one["prompt"]], words))
    return {method: (sum(marks), len(marks)) for method, marks in found.items()}


def main() -> None:
    """Print a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    folder = parser.parse_args().results
    for method, (having, asked) in counts(folder / "answers.jsonl").items():
        print(f"{method}: {having} of {asked}")


if __name__ == "__main__":
    main()
