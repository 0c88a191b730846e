# SPDX-License-Identifier: Apache-2.0
"""Choose each concept's edit: hundreds of candidates at the same time in one engine.

Every candidate is a mask of a temporary bundle; all concepts' searches go on in step,
so that their trials fill the engine's batches together.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.evaluation.metrics import Outcome, forgets
from vllm_sauce.learning.calibration.common import Note
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.coordinate_search import (
    STEPS,
    in_step,
    site_rounds,
    stronger,
)
from vllm_sauce.learning.calibration.examiner import Examiner, Trial
from vllm_sauce.learning.calibration.setting import Setting, taken_away

ENOUGH = 0.98
"""Share of forgetting of which a concept's own search could gain nothing."""
ALIKE = 2
"""Settings of the same latents among those that the search hands on."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The edit of one concept, and everything that was tried for it."""

    best: Trial
    """On all questions of the calibration split."""
    edits: Mapping[str, SiteEdit]
    common: bool
    """Whether it is the setting that others have, too, or part of it."""
    base: Outcome
    """Of the unedited model on the same questions."""
    within_floor: bool
    """Whether IRA, CRA and every other concept lost no more than they may."""
    trials: tuple[Trial, ...] = field(repr=False)


def calibrate(
    examiner: Examiner,
    common: Mapping[str, Setting],
    note: Note = lambda what, done, total: None,
) -> dict[str, Calibrated]:
    """Choose every concept's edit: the common setting, or a better one of its own.

    ``common``: by concept, where there is one. A concept of which it leaves something
    unforgotten, or loses too much, has a search of its own, whose best is taken if it
    is surely better.

    Best is, of what surely forgets and does not surely lose more of IRA, CRA or another
    concept than it may, what forgets most. Where nothing does both,
    forgetting comes first: a concept that is not forgotten is of no use to anybody.
    """
    worth = partial(_worth, examiner.config)
    shared = {
        name: next(iter(trials.values()))
        for name, trials in examiner.trials(
            {name: [setting] for name, setting in common.items()},
            1.0,
            partial(note, "common setting"),
        ).items()
    }
    alone = [
        name
        for name in examiner.choices
        if name not in shared or not _leaves_nothing(examiner.config, shared[name])
    ]
    stages = _search(examiner, alone, note)
    best = {name: max(stages[-1][name].values(), key=worth) for name in alone}
    for name, trial in shared.items():
        if name not in best or not _surely_better(examiner.config, best[name], trial):
            best[name] = trial
    strengthened = _strengthen(examiner, best, note)
    best = {name: max(trials, key=worth) for name, trials in strengthened.items()}
    pruned = _prune(examiner, best, note) if examiner.config.prune else {}
    found = {}
    for name in examiner.choices:
        smaller = pruned.get(name, [])
        chosen = smaller[-1] if smaller else best[name]
        asked = (stage[name].values() for stage in stages if name in stage)
        known = (shared[name],) if name in shared else ()
        trials = (*itertools.chain(*asked), *known, *smaller, *strengthened[name])
        distinct = {(t.share, t.setting): t for t in trials}.values()
        found[name] = Calibrated(
            best=chosen,
            edits=examiner.choices[name].edits(chosen.setting),
            common=name in shared and best[name] is shared[name],
            base=examiner.base(name),
            within_floor=_within_floor(examiner, name, chosen),
            trials=tuple(t for t in distinct if t.objective > -math.inf),
        )
    return found


def _leaves_nothing(config: CalibrationConfig, trial: Trial) -> bool:
    return _holds(config, trial)[0] and trial.scores.forgetting >= ENOUGH


def _surely_better(config: CalibrationConfig, own: Trial, common: Trial) -> bool:
    """Return whether a concept's own best is more than the luck of its few answers."""
    mine, theirs = _holds(config, own), _holds(config, common)
    if mine != theirs:
        return mine > theirs
    if not theirs[-1]:
        # What keeps too little is compared by what the search maximises, as ever.
        return own.objective > common.objective
    # Both err: n of n would else be more than one less, of any n.
    error = common.scores.forgetting - common.sure.forgetting
    return own.sure.forgetting > common.scores.forgetting + error


def _distinct(
    examiner: Examiner,
    name: str,
    trials: Mapping[Setting, Trial],
    count: int,
    alike: int | None = None,
) -> list[Setting]:
    """Return the best settings that differ in what they do.

    At most ``alike`` of them edit the same latents, unless there are no others.
    """
    choices, worth = examiner.choices[name], partial(_worth, examiner.config)
    chosen: dict[Hashable, tuple[bool, Setting]] = {}
    same: Counter[Hashable] = Counter()
    for trial in sorted(trials.values(), key=worth, reverse=True):
        mask = choices.mask(trial.setting)
        if trial.objective == -math.inf or mask in chosen:
            continue
        edits = sorted(choices.edits(trial.setting).items())
        latents = tuple((site, frozenset(edit.latents)) for site, edit in edits)
        same[latents] += 1
        too_many = alike is not None and same[latents] > alike
        chosen[mask] = too_many, trial.setting
    return [one for _, one in sorted(chosen.values(), key=itemgetter(0))][:count]


def _search(
    examiner: Examiner, names: Sequence[str], note: Note
) -> list[dict[str, dict[Setting, Trial]]]:
    """Run some concepts' searches to their end.

    Returns what was tried: in the search, of its best, and, on all questions, of these.
    """
    config = examiner.config
    tried: dict[str, dict[Setting, Trial]] = {name: {} for name in names}
    rounds = itertools.count(1)

    def ask(wanted: Mapping[str, list[Setting]]) -> dict[str, dict[Setting, float]]:
        told = partial(note, f"round {next(rounds)}")
        found = examiner.trials(wanted, config.screen, told, watched=False)
        for name, trials in found.items():
            tried[name] |= trials
        return {
            name: {setting: trial.objective for setting, trial in trials.items()}
            for name, trials in found.items()
        }

    searches = {
        name: site_rounds(examiner.choices[name].grids, config.passes) for name in names
    }
    in_step(searches, ask)
    stages = [tried]
    # Few questions err; so more of the best are asked more, and the best of those all.
    for what, share, count, alike in (
        ("semifinals", min(1.0, 2 * config.screen), 2 * config.finalists, ALIKE),
        ("finals", 1.0, config.finalists, None),
    ):
        wanted = {
            name: _distinct(examiner, name, trials, count, alike)
            for name, trials in stages[-1].items()
        }
        stages.append(examiner.trials(wanted, share, partial(note, what)))
    return stages


def _within_floor(examiner: Examiner, name: str, trial: Trial) -> bool:
    # Shares of few questions: what is lost by rounding alone is not lost.
    config = examiner.config
    return (
        trial.scores.loss(examiner.base(name)) <= config.retain_floor + 1e-9
        and trial.worst[1] <= config.worst_floor + 1e-9
    )


def _holds(config: CalibrationConfig, trial: Trial) -> tuple[bool, bool, bool]:
    """Return whether a trial surely forgets and keeps, whether it forgets, and keeps.

    A loss counts where it is sure, forgetting where it is: few answers must not make
    the stronger edit look costly, or a mild one enough.
    """
    sure, floor = trial.sure, config.forget_floor
    keeps = sure.loss <= config.retain_floor and sure.worst <= config.worst_floor
    forgotten = forgets(trial.scores.to_json(), floor)
    return keeps and sure.forgetting >= floor, forgotten, keeps


def _worth(config: CalibrationConfig, trial: Trial) -> tuple[float, ...]:
    """Return what of two trials is the better one; the first that differs decides."""
    holds = _holds(config, trial)
    # What keeps too little is compared by what the search maximises: it knows how much.
    return *holds, *(_merit(trial) if holds[-1] else (trial.objective,))


def _merit(trial: Trial) -> tuple[float, float]:
    return trial.scores.forgetting, trial.objective


def _strengthen(
    examiner: Examiner, best: Mapping[str, Trial], note: Note
) -> dict[str, list[Trial]]:
    """Try stronger edits, a step at a time, of what is not surely forgotten.

    The search has asked a share of the questions, and few may say that a mild edit is
    enough. Returns what was tried, the best so far first.
    """
    floor = examiner.config.forget_floor
    tried = {name: [trial] for name, trial in best.items()}

    def ahead(trial: Trial) -> tuple[object, ...]:
        # Names and denials may each need a step of their own, at another site.
        forgetting = trial.sure.forgetting, trial.scores.forgetting
        return *forgetting, taken_away(trial.setting)

    at = dict(best)
    for _ in range(STEPS):
        wanted = {
            name: stronger(one.setting, examiner.choices[name].grids)
            for name, one in at.items()
            if one.sure.forgetting < floor
        }
        if not any(wanted.values()):
            break
        found = examiner.trials(wanted, 1.0, partial(note, "stronger edits"))
        at = {
            name: max(trials.values(), key=ahead)
            for name, trials in found.items()
            if trials
        }
        for name, trials in found.items():
            tried[name] += trials.values()
    return tried


def _prune(
    examiner: Examiner, best: Mapping[str, Trial], note: Note
) -> dict[str, list[Trial]]:
    """Drop latents that cost nothing to leave; returns what was taken, best last.

    A part is dropped if as much is sure as before and neither forgetting nor what the
    search maximises gets worse.
    """
    kept = {name: [trial] for name, trial in best.items()}
    parts = {
        name: list(examiner.choices[name].smaller(trial.setting))
        for name, trial in best.items()
    }
    while any(parts.values()):
        wanted: dict[str, list[Setting]] = {}
        for name, left in parts.items():
            if left:
                setting = kept[name][-1].setting
                smaller = examiner.choices[name].pruned(setting, *left.pop(0))
                wanted |= {name: [smaller]} if smaller else {}
        found = examiner.trials(wanted, 1.0, partial(note, "pruning"))
        for name, trials in found.items():
            ((_, trial),) = trials.items()
            before = kept[name][-1]
            held, holds = (_holds(examiner.config, one) for one in (before, trial))
            lost = any(was and not is_ for was, is_ in zip(held, holds, strict=True))
            pairs = zip(_merit(trial), _merit(before), strict=True)
            if not lost and all(now >= then - 1e-9 for now, then in pairs):
                kept[name].append(trial)
    return kept
