# SPDX-License-Identifier: Apache-2.0
"""A setting: what is done for a concept at each site that is edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.selection.selection_file import (
    FILE,
    RankedLatent,
    SelectedConcept,
    level_name,
    ranks_row,
)

GATE_MARGIN = 0.01
"""How far above the level of a share a gate lies, relative to it.

Tokens before the picture are the same in every prompt, and levels fall on what they
have: at the level itself rounding, and so the rest of the batch, would decide.
"""


@dataclass(frozen=True, slots=True)
class Action:
    """What is done to an active latent."""

    text: str
    """As it was given: "scale -0.5", "clamp 1"."""
    clamps: bool
    """Whether it is set to an amount (see ``CalibrationConfig``), else scaled by it."""
    amount: float

    @classmethod
    def parse(cls, text: str) -> Action:
        """Read "scale -0.5" or "clamp 1".

        Raises: ConfigError
        """
        kind, _, number = text.partition(" ")
        try:
            amount = float(number)
        except ValueError:
            amount = float("nan")
        fits = {"scale": -100 <= amount < 1, "clamp": 0 < amount <= 100}
        if not fits.get(kind, False):
            raise ConfigError(
                'an action is "scale G" with G in -100..1 or "clamp C" with C in '
                f"0..100, got {text!r}"
            )
        return cls(text, kind == "clamp", amount)

    @property
    def removed(self) -> float:
        """Share of a latent's largest activation that is taken away."""
        return 1 + self.amount if self.clamps else 1 - self.amount


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSetting:
    """What is done at one site."""

    site: str
    ranking: str
    """The score that latents are ranked by, or which row it is."""
    k: int
    """So many of the best are edited."""
    gate: float
    """Share of the tokens without the concept that is left alone; of a row, what it
    must read."""
    action: Action
    without: tuple[int, ...] = ()
    """First ranks of the bands that were pruned."""

    def to_json(self) -> dict[str, object]:
        """Return it for a record, where its site is the key."""
        told: dict[str, object] = {
            "ranking": self.ranking,
            "k": self.k,
            "gate": self.gate,
            "action": self.action.text,
        }
        return told | ({"without": list(self.without)} if self.without else {})

    def edit_of(self, latents: Sequence[RankedLatent]) -> SiteEdit:
        """Return the edit of some latents with this action and gate.

        Raises: ConfigError if the selection lacks the gate's level
        """
        action, is_row = self.action, ranks_row(self.ranking)
        return SiteEdit(
            latents=tuple(one.latent for one in latents),
            gamma=(0.0 if action.clamps else action.amount,) * len(latents),
            shift=tuple(
                -action.amount * one.max_acts[0] if action.clamps else 0.0
                for one in latents
            ),
            gate=tuple(
                # A row's scale is its own: 0 without the concept, 1 with it.
                self.gate if is_row else _gate(one, self.gate)
                for one in latents
            ),
        )


Setting = tuple[SiteSetting, ...]
"""One for each site that is edited, in the order of the search's sites."""


def setting_to_json(setting: Setting) -> dict[str, dict[str, object]]:
    """Return a setting for a record, by site."""
    return {one.site: one.to_json() for one in setting}


def setting_of_json(told: Mapping[str, Mapping[str, Any]]) -> Setting:
    """Return the setting that a record tells of."""
    return tuple(
        SiteSetting(
            site=site,
            ranking=one["ranking"],
            k=one["k"],
            gate=one["gate"],
            action=Action.parse(one["action"]),
            without=tuple(one.get("without", ())),
        )
        for site, one in told.items()
    )


def taken_away(setting: Setting) -> tuple[float, float]:
    """Return how much a setting takes away: its latents' shares, then how widely.

    Pruned latents count, too.
    """
    shares = sum(one.k * one.action.removed for one in setting)
    return shares, -sum(one.gate for one in setting)


def ranked(found: SelectedConcept, ranking: str) -> list[RankedLatent]:
    """Return the latents that a ranking chooses, best first."""
    if ranking == FILE:
        return list(found.latents)
    scored = [(one.scores.get(ranking), one) for one in (*found.latents, *found.rows)]
    chosen = [(score, one) for score, one in scored if score is not None]
    return [one for _, one in sorted(chosen, key=lambda pair: -pair[0])]


def _gate(latent: RankedLatent, share: float) -> float:
    if share == 0.0:
        return 0.0
    quiet = latent.quiet.get(level_name(share))
    level = latent.max_acts[1] if share == 1.0 else quiet
    if level is None:
        raise ConfigError(
            f"the selection has no level {share:g} of latent {latent.latent}; run "
            "sauce select again, or calibrate with the gates 0 and 1 alone"
        )
    return (1 + GATE_MARGIN) * max(level, 0.0)
