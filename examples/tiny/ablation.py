# SPDX-License-Identifier: Apache-2.0
"""Each ingredient's share of what calibration found: taken away, all else as it is.

``PYTHONPATH=examples python -m tiny.ablation --calibration BUNDLE.calibration
--selection vision.json --selection decoder.1.json --sae vision=FOLDER ...`` scores
every concept's edit on the scoring pictures, and again without its gate, with one
gamma, one k or one ranking for all, at one site alone, and without pruning. Nothing is
calibrated anew, so a share is at least what the others cannot make up for.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tiny.concepts import DOMAIN_OF
from tiny.exam import MODEL_FOLDER, Tiny
from tiny.scoring import Scorer
from vllm_sauce.bundle import fingerprint_model
from vllm_sauce.concepts import Concept, SiteEdit
from vllm_sauce.evaluation.metrics import NAMES
from vllm_sauce.learning.calibration.edit_choices import EditChoices, SiteSetting
from vllm_sauce.learning.selection.select import read_sae
from vllm_sauce.learning.selection.selection_file import SelectionFile
from vllm_sauce.options import parse_pairs

Sites = Mapping[str, SiteSetting]
PLAIN = SiteSetting(ranking="share", k=16, gate=0.0, action="scale -2")
"""One setting for all concepts, at the vision site."""


def each(**values: object) -> Callable[[Sites], Sites]:
    """Return what sets some values alike at every site that is edited."""
    return lambda sites: {
        site: replace(one, **values)  # type: ignore[arg-type]
        for site, one in sites.items()
    }


def alone(kept: str) -> Callable[[Sites], Sites]:
    """Return what leaves one site, where it is edited."""
    return lambda sites: {kept: sites[kept]} if kept in sites else sites


VARIANTS: dict[str, Callable[[Sites], Sites]] = {
    "as calibrated": lambda sites: sites,
    "not pruned": each(without=()),
    "no gate": each(gate=0.0),
    "ranked by S(i) alone": each(ranking="share", without=()),
    "16 latents for all": each(k=16, without=()),
    "gamma -2 for all": each(action="scale -2"),
    "vision alone": alone("vision"),
    "decoder.1 alone": alone("decoder.1"),
    "vision, S(i), 16, gamma -2, no gate": lambda sites: {"vision": PLAIN},
}


def settings(folder: Path) -> Iterator[tuple[str, dict[str, SiteSetting]]]:
    """Yield each calibrated concept and what is done at its sites."""
    for path in sorted(folder.glob("concept-*.json")):
        entry = json.loads(path.read_text())
        found = {}
        for site, one in entry["setting"].items():
            without = tuple(one.pop("without", ()))
            found[site] = SiteSetting(**one, without=without)
        yield entry["concept"], found


def choices_of(
    name: str, selections: Mapping[str, SelectionFile], config: Mapping[str, list[int]]
) -> EditChoices:
    """Return what a concept's settings mean."""
    latents = {site: one.concepts[name] for site, one in selections.items()}
    return EditChoices(name, latents, tuple(config["k"]), (0.0,), ("scale -2",))


def edits_of(choices: EditChoices, sites: Sites) -> dict[str, SiteEdit]:
    """Return the edits of settings."""
    return choices.edits(choices.setting(sites))


def main() -> None:
    """Print a row for each variant: means over all concepts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--selection", type=Path, action="append", required=True)
    parser.add_argument("--sae", action="append", required=True, help="SITE=FOLDER")
    arguments = parser.parse_args()
    fingerprint = fingerprint_model(MODEL_FOLDER)
    saes = {
        site: read_sae(Path(path), site, fingerprint)
        for site, path in parse_pairs(arguments.sae, "SITE=FOLDER").items()
    }
    read = [SelectionFile.read(path) for path in arguments.selection]
    selections = {one.site: one for one in read}
    config = json.loads((arguments.calibration / "run.json").read_text())["config"]
    scorer = Scorer(Tiny.load())
    sums: dict[str, dict[str, float]] = {name: {} for name in VARIANTS}
    found = list(settings(arguments.calibration))
    for name, sites in track(found, "concepts"):
        choices = choices_of(name, selections, config)
        for variant, change in VARIANTS.items():
            edits = edits_of(choices, change(sites))
            concept = Concept(name=name, domain=DOMAIN_OF[name], edits=edits)
            for score, value in scorer.scores(concept, saes).items():
                sums[variant][score] = sums[variant].get(score, 0.0) + value
    table = Table("", *NAMES, "HM", "change", title=f"{len(found)} concepts, in %")
    best = sums["as calibrated"]["HM"]
    for variant, scores in sums.items():
        cells = [f"{100 * scores[n] / len(found):.1f}" for n in (*NAMES, "HM")]
        lost = f"{100 * (scores['HM'] - best) / len(found):+.1f}"
        table.add_row(variant, *cells, lost)
    Console().print(table)


if __name__ == "__main__":
    main()
