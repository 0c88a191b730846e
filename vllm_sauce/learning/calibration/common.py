# SPDX-License-Identifier: Apache-2.0
"""One setting for all concepts that may choose from the same: what many answers say.

One concept's answers are few, and among edits that all forget them luck chooses. What
is best of a setting is told by all concepts' answers together.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

from vllm_sauce.learning.calibration.coordinate_search import site_rounds
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.examiner import Examiner
from vllm_sauce.learning.calibration.grid import SiteGrid
from vllm_sauce.learning.calibration.setting import Setting

MOST = 20
"""Concepts that are asked for a common setting, drawn from those it is for."""

Note = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A setting, and the mean of what a search maximises over all concepts asked."""

    setting: Setting
    objective: float
    share: float
    """Share of the questions that were asked."""


def pools(
    choices: Mapping[str, EditChoices], seed: int
) -> dict[tuple[SiteGrid, ...], list[str]]:
    """Return the concepts that a common setting is sought on, by what they share.

    A concept alone in what it may choose from has nobody to share with.
    """
    found: dict[tuple[SiteGrid, ...], list[str]] = {}
    for name, one in choices.items():
        found.setdefault(one.grids, []).append(name)
    return {
        grids: sorted(random.Random(seed).sample(sorted(names), min(len(names), MOST)))
        for grids, names in found.items()
        if len(names) > 1
    }


def common_settings(examiner: Examiner, note: Note) -> list[Tried]:
    """Search one setting for all of an examiner's concepts, which share their grids.

    Returns all that were tried, the best first: a search as a concept's own, then the
    best few of it on all questions, with every other concept named.
    """
    config, names = examiner.config, list(examiner.choices)

    def ask(
        settings: Sequence[Setting], share: float, what: str, watched: bool
    ) -> dict[Setting, float]:
        wanted = dict.fromkeys(names, settings)
        told = partial(note, what)
        found = examiner.trials(wanted, share, told, watched=watched)
        return {
            one: fmean(found[name][one].objective for name in names) for one in settings
        }

    search = site_rounds(examiner.choices[names[0]].grids, config.passes)
    searched: dict[Setting, float] = {}
    wanted = next(search)
    try:
        while True:
            asked = ask(wanted, config.screen, "common setting", False)
            searched |= asked
            wanted = search.send(asked)
    except StopIteration:
        pass
    # To leave every site alone is no edit.
    real = [one for one in searched if searched[one] > -math.inf]
    best = sorted(real, key=searched.__getitem__, reverse=True)
    # Settings may differ in name alone.
    distinct: dict[Hashable, Setting] = {}
    for one in best:
        masks = tuple(examiner.choices[name].mask(one) for name in names)
        distinct.setdefault(masks, one)
    finals = ask(
        [*distinct.values()][: config.finalists], 1.0, "common setting, finals", True
    )
    tried = [Tried(one, value, 1.0) for one, value in finals.items()]
    tried.sort(key=lambda one: -one.objective)
    return tried + [Tried(one, searched[one], config.screen) for one in best]
