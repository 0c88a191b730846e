# SPDX-License-Identifier: Apache-2.0
"""How much is forgotten at what price: the frontier of all that calibration tried.

``PYTHONPATH=examples python -m tiny.frontiers BUNDLE.calibration`` prints, for shares
of IRA and CRA that must be kept, the most forgetting (harmonic mean of UAg and UAd) of
a setting that keeps them, on average over concepts. Settings are judged by the most
questions they were asked, of the calibration split: the best of many looks a little
better than it is, the scoring pictures' table says by how much.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tiny.concepts import DOMAIN_OF, DOMAINS

FLOORS = (0.99, 0.98, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.0)


def best_known(trials: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return each setting's trial on the most questions."""
    found: dict[str, Mapping[str, Any]] = {}
    for trial in sorted(trials, key=lambda trial: float(trial["share"])):
        found[json.dumps(trial["setting"], sort_keys=True)] = trial
    return list(found.values())


def most_forgetting(trials: Iterable[Mapping[str, Any]], floor: float) -> float:
    """Return the most that is forgotten by what keeps IRA and CRA at a floor."""
    return max((t["forgetting"] for t in trials if t["keeping"] >= floor), default=0.0)


def main() -> None:
    """Print a row for each floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calibration", type=Path)
    arguments = parser.parse_args()
    tried: dict[str, list[list[Mapping[str, Any]]]] = {d: [] for d in DOMAINS}
    for path in sorted(arguments.calibration.glob("concept-*.json")):
        entry = json.loads(path.read_text())
        tried[DOMAIN_OF[entry["concept"]]].append(best_known(entry["trials"]))
    every = [trials for part in tried.values() for trials in part]
    count = sum(map(len, every))
    title = f"forgetting in %, {len(every)} concepts, {count} settings"
    table = Table("IRA and CRA at least", *DOMAINS, "all", title=title)
    for floor in FLOORS:
        means = [
            sum(most_forgetting(trials, floor) for trials in part) / max(len(part), 1)
            for part in (*tried.values(), every)
        ]
        table.add_row(f"{floor:.0%}", *(f"{100 * mean:.1f}" for mean in means))
    Console().print(table)


if __name__ == "__main__":
    main()
