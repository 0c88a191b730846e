# SPDX-License-Identifier: Apache-2.0
"""A setting: what is done for a concept at each site that is edited."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_sauce.errors import ConfigError


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


Setting = tuple[SiteSetting, ...]
"""One for each site that is edited, in the order of the search's sites."""


def taken_away(setting: Setting) -> tuple[float, float]:
    """Return how much a setting takes away: its latents' shares, then how widely.

    Pruned latents count, too.
    """
    shares = sum(one.k * one.action.removed for one in setting)
    return shares, -sum(one.gate for one in setting)
