# SPDX-License-Identifier: Apache-2.0
"""The values that a search may choose from at one site, an axis for each choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.setting import Action, SiteSetting
from vllm_sauce.learning.selection.selection_file import (
    FILE,
    QUIET_LEVELS,
    SelectedConcept,
    row_ranking,
)

GATES = (0.0, *QUIET_LEVELS, 1.0)
"""Shares of the tokens without the concept that a gate may leave unedited."""

ACTION = "action"
"""The axis along which a site that is left alone is edited again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteGrid:
    """What may be done at one site. Another choice is a field, and a line of ``axes``.

    See ``SiteSetting`` for what each means.
    """

    site: str
    rankings: tuple[str, ...]
    k: tuple[int, ...]
    gates: tuple[float, ...]
    actions: tuple[Action, ...]

    @classmethod
    def of(
        cls, site: str, concept: str, found: SelectedConcept, config: CalibrationConfig
    ) -> SiteGrid:
        """Return what a configuration allows where some latents were selected.

        Raises: ConfigError
        """
        if wrong := sorted(set(config.gates) - set(GATES)):
            raise ConfigError(
                f"a gate is one of {', '.join(map(str, GATES))}, got {wrong[0]}"
            )
        most = len(found.latents)
        return cls(
            site=site,
            rankings=_rankings(site, concept, found, config.rankings),
            k=tuple(k for k in config.k if k <= most) or (most,),
            gates=config.gates,
            actions=tuple(map(Action.parse, config.actions)),
        )

    @classmethod
    def of_rows(
        cls, site: str, found: SelectedConcept, config: CalibrationConfig
    ) -> SiteGrid:
        """Return what a configuration allows where rows were fitted."""
        there = tuple(name for row in found.rows for name in row.scores)
        wanted = {row_ranking(kind) for kind in config.row_kinds}
        # To take away a share of what a row reads is to scale it by what is left.
        actions = (f"scale {1 - share:g}" for share in config.row_shares)
        return cls(
            site=site,
            # A background is never absent: it has no row of that kind.
            rankings=tuple(name for name in there if name in wanted) or there,
            k=(1,),
            gates=config.row_gates,
            actions=tuple(map(Action.parse, actions)),
        )

    def start(self) -> SiteSetting:
        """Return where a search begins: the first ranking, the middle of the rest."""
        return SiteSetting(
            site=self.site,
            ranking=self.rankings[0],
            k=self.k[len(self.k) // 2],
            gate=self.gates[len(self.gates) // 2],
            action=self.actions[len(self.actions) // 2],
        )

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Return the values of each field of a ``SiteSetting`` that may be chosen."""
        return {
            "ranking": self.rankings,
            "k": self.k,
            "gate": self.gates,
            ACTION: self.actions,
        }


def _rankings(
    site: str, concept: str, found: SelectedConcept, wanted: Sequence[str]
) -> tuple[str, ...]:
    """Return the ways to rank that choose a latent; all of them if none is wanted."""
    names = dict.fromkeys(
        name
        for latent in found.latents
        for name, score in latent.scores.items()
        if score is not None
    )
    if not wanted:
        return (FILE, *(name for name in names if name != FILE))
    kept = tuple(name for name in wanted if name == FILE or name in names)
    if not kept:
        raise ConfigError(
            f"the selection for {site} ranks the latents of {concept!r} by "
            f"{FILE}, {', '.join(names)}, not by {', '.join(wanted)}"
        )
    return kept
