# SPDX-License-Identifier: Apache-2.0
"""One concept's settings as candidates of an engine, and what can be pruned of them.

A candidate is a band of latents that are next to each other in a ranking, with a gate
and an action: a mask of some of them is any k, and any part of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.grid import SiteGrid
from vllm_sauce.learning.calibration.setting import Setting, SiteSetting, ranked
from vllm_sauce.learning.selection.selection_file import SelectedConcept

BAND = 8
"""Latents of a band at most: what can be pruned at once."""


@dataclass(frozen=True, slots=True)
class EditChoices:
    """What a calibration may do for one concept."""

    concept: str
    latents: Mapping[str, SelectedConcept]
    """What ``sauce select`` kept, by site."""
    grids: tuple[SiteGrid, ...]
    """What may be done: with a site's latents, and with its rows."""

    @classmethod
    def of(
        cls,
        concept: str,
        latents: Mapping[str, SelectedConcept],
        config: CalibrationConfig,
    ) -> EditChoices:
        """Return what a configuration allows, where something was selected.

        Raises: ConfigError
        """
        grids: list[SiteGrid] = []
        for site, found in latents.items():
            if found.latents:
                grids.append(SiteGrid.of(site, concept, found, config))
            if found.rows:
                grids.append(SiteGrid.of_rows(site, found, config))
        if not grids:
            raise ConfigError(
                f"no latent was selected for {concept!r} at any site; give more "
                "examples, or an SAE that explains more"
            )
        return cls(concept, latents, tuple(grids))

    def edits(self, setting: Setting) -> dict[str, SiteEdit]:
        """Return the edits that a setting stands for; none if it leaves all alone."""
        found = {}
        for one in setting:
            order = ranked(self.latents[one.site], one.ranking)
            mine = [latent for a, b in self._bands(one) for latent in order[a:b]]
            found[one.site] = one.edit_of(mine)
        return found

    def mask(self, setting: Setting) -> Hashable:
        """Return what tells a setting's edit from others: some rank alike."""
        return tuple(
            (site, frozenset(zip(e.latents, e.gamma, e.shift, e.gate, strict=True)))
            for site, e in sorted(self.edits(setting).items())
        )

    def parts(self, setting: Setting) -> tuple[str, ...]:
        """Return the names of the candidates that are a setting's edit together."""
        return tuple(
            self._name(one, band) for one in setting for band in self._bands(one)
        )

    def candidates(self) -> dict[str, dict[str, SiteEdit]]:
        """Return all candidates by name."""
        found: dict[str, dict[str, SiteEdit]] = {}
        for one in self._widest():
            order = ranked(self.latents[one.site], one.ranking)
            for first, stop in self._bands(one):
                edit = one.edit_of(order[first:stop])
                found[self._name(one, (first, stop))] = {one.site: edit}
        return found

    def widest(self) -> int:
        """Return how many latents an edit has at most, at a site."""
        return max(max(grid.k) for grid in self.grids)

    def most_parts(self) -> int:
        """Return how many candidates a setting is made of at most."""
        most = dict.fromkeys((grid.site for grid in self.grids), 0)
        for one in self._widest():
            most[one.site] = max(most[one.site], len(self._bands(one)))
        return sum(most.values())

    def smaller(self, setting: Setting) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield what may be pruned: a site, and first ranks of some of its bands.

        About a quarter of a site's latents at a time, the last ranked first.
        """
        for one in setting:
            chunk: list[tuple[int, int]] = []
            quarter = max(1, one.k // 4)
            for band in reversed(self._bands(one)):
                chunk.append(band)
                if sum(b - a for a, b in chunk) >= quarter:
                    yield one.site, tuple(a for a, _ in chunk)
                    chunk = []
            if chunk:
                yield one.site, tuple(a for a, _ in chunk)

    def pruned(
        self, setting: Setting, site: str, bands: Sequence[int]
    ) -> Setting | None:
        """Return a setting without some bands; None if that leaves a site nothing."""
        found = tuple(
            replace(one, without=tuple(sorted({*one.without, *bands})))
            if one.site == site
            else one
            for one in setting
        )
        return found if all(map(self._bands, found)) else None

    def _bands(self, one: SiteSetting) -> list[tuple[int, int]]:
        """Return the ranks [first, stop) that an edit at a site is made of.

        A band ends at every k of the grid, so all settings share them, and has few
        latents, so that a part of an edit can be pruned.
        """
        counts = next(
            grid.k
            for grid in self.grids
            if grid.site == one.site and one.ranking in grid.rankings
        )
        stop = min(one.k, len(ranked(self.latents[one.site], one.ranking)))
        edges = {0, *counts, *range(BAND, max(counts), BAND)}
        bands = pairwise(sorted({e for e in edges if e < stop} | {stop}))
        return [band for band in bands if band[0] not in one.without]

    def _widest(self) -> Iterator[SiteSetting]:
        """Yield each site's rankings, gates and actions with all that are chosen."""
        for grid in self.grids:
            for ranking, gate, action in product(
                grid.rankings, grid.gates, grid.actions
            ):
                yield SiteSetting(
                    site=grid.site,
                    ranking=ranking,
                    k=max(grid.k),
                    gate=gate,
                    action=action,
                )

    def _name(self, one: SiteSetting, band: tuple[int, int]) -> str:
        ranks = f"{band[0]}-{band[1]}"
        return (
            f"{self.concept}: {one.site} {one.ranking} {ranks} gate={one.gate:g} "
            f"{one.action.text}"
        )
