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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from tiny.concepts import DOMAIN_OF
from tiny.exam import MODEL_FOLDER, Tiny
from tiny.scoring import Scorer
from vllm_sauce.bundle import fingerprint_model
from vllm_sauce.bundle.served_sae import read_sae
from vllm_sauce.concepts import Concept
from vllm_sauce.evaluation.metrics import NAMES
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.setting import Action, Setting, SiteSetting
from vllm_sauce.learning.selection.selection_file import SelectionFile
from vllm_sauce.options import parse_pairs

PLAIN = SiteSetting(
    site="vision", ranking="share", k=16, gate=0.0, action=Action.parse("scale -2")
)
"""One setting for all concepts, at the vision site."""


def each(change: Callable[[SiteSetting], SiteSetting]) -> Callable[[Setting], Setting]:
    """Return what changes every site that is edited alike."""
    return lambda setting: tuple(map(change, setting))


def alone(kept: str) -> Callable[[Setting], Setting]:
    """Return what leaves one site, where it is edited."""
    return lambda setting: tuple(one for one in setting if one.site == kept) or setting


VARIANTS: dict[str, Callable[[Setting], Setting]] = {
    "as calibrated": lambda setting: setting,
    "not pruned": each(lambda one: replace(one, without=())),
    "no gate": each(lambda one: replace(one, gate=0.0)),
    "ranked by S(i) alone": each(lambda one: replace(one, ranking="share", without=())),
    "16 latents for all": each(lambda one: replace(one, k=16, without=())),
    "gamma -2 for all": each(lambda one: replace(one, action=PLAIN.action)),
    "vision alone": alone("vision"),
    "decoder.1 alone": alone("decoder.1"),
    "vision, S(i), 16, gamma -2, no gate": lambda setting: (PLAIN,),
}


def settings(folder: Path) -> Iterator[tuple[str, Setting]]:
    """Yield each calibrated concept and its setting."""
    for path in sorted(folder.glob("concept-*.json")):
        entry = json.loads(path.read_text())
        found = [
            SiteSetting(
                site=site,
                ranking=one["ranking"],
                k=one["k"],
                gate=one["gate"],
                action=Action.parse(one["action"]),
                without=tuple(one.get("without", ())),
            )
            for site, one in entry["setting"].items()
        ]
        yield entry["concept"], tuple(found)


def choices_of(
    name: str, selections: Mapping[str, SelectionFile], k: Sequence[int]
) -> EditChoices:
    """Return what a concept's settings mean; of the search only ``k`` matters."""
    latents = {site: one.concepts[name] for site, one in selections.items()}
    return EditChoices.of(name, latents, CalibrationConfig(k=tuple(k)))


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
    for name, setting in track(found, "concepts"):
        choices = choices_of(name, selections, config["k"])
        for variant, change in VARIANTS.items():
            edits = choices.edits(change(setting))
            concept = Concept(name=name, domain=DOMAIN_OF[name], edits=edits)
            for score, value in scorer.scores(concept, saes).items():
                assert value is not None, f"{name}: nothing asked for {score}"
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
