# SPDX-License-Identifier: Apache-2.0
"""The edits a calibration may choose from for one concept, and their names.

Each site has its own ranking, k, gate and action, or is left alone. A candidate of the
engine is a band of latents that are next to each other in a ranking: a mask of some of
them is any k, and any part of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.coordinate_search import Setting
from vllm_sauce.learning.selection.selection_file import (
    QUIET_LEVELS,
    RankedLatent,
    SelectedConcept,
    level_name,
)

OFF = "off"
"""The action that leaves a site alone."""

FILE = "file"
"""The ranking of the selection's own score."""

BAND = 8
"""Latents of a band at most: what can be pruned at once."""

GATE_MARGIN = 0.01
"""How far above the level of a share a gate lies, relative to it.

Tokens before the picture are the same in every prompt, and levels fall on what they
have: at the level itself rounding, and so the rest of the batch, would decide.
"""

GATES = (0.0, *QUIET_LEVELS, 1.0)
"""Shares of the tokens without the concept that a gate may leave unedited."""


@dataclass(frozen=True, slots=True)
class Action:
    """What is done to an active latent."""

    kind: str
    """ "scale" or "clamp"."""
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
        return cls(kind, amount)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSetting:
    """What is done at one site."""

    ranking: str
    k: int
    gate: float
    action: str
    without: tuple[int, ...] = ()
    """First ranks of the bands that were pruned."""

    def to_json(self) -> dict[str, object]:
        """Return it for a report."""
        told: dict[str, object] = {
            "ranking": self.ranking,
            "k": self.k,
            "gate": self.gate,
            "action": self.action,
        }
        return told | ({"without": list(self.without)} if self.without else {})


@dataclass(frozen=True, slots=True)
class EditChoices:
    """One concept's grid: for each site its ranking, k, gate and action."""

    concept: str
    latents: Mapping[str, SelectedConcept]
    """What ``sauce select`` kept, by site."""
    k: tuple[int, ...]
    gates: tuple[float, ...]
    actions: tuple[str, ...]
    rankings: tuple[str, ...] = ()
    """Empty: all that choose a latent."""
    grid: dict[str, tuple[Hashable, ...]] = field(init=False)
    """Values by coordinate: "<site> k", ..."""
    starts: tuple[dict[str, Hashable], ...] = field(init=False)
    """One for each site, alone."""

    def __post_init__(self) -> None:
        for text in self.actions:
            Action.parse(text)
        if wrong := sorted(set(self.gates) - set(GATES)):
            raise ConfigError(
                f"a gate is one of {', '.join(map(str, GATES))}, got {wrong[0]}"
            )
        sites = self.sites()
        if not sites:
            raise ConfigError(
                f"no latent was selected for {self.concept!r} at any site; give more "
                "examples, or an SAE that explains more"
            )
        grid: dict[str, tuple[Hashable, ...]] = {}
        for site in sites:
            grid |= self._site_grid(site, alone=len(sites) == 1)
        middle = {name: values[len(values) // 2] for name, values in grid.items()}
        middle |= {f"{site} ranking": grid[f"{site} ranking"][0] for site in sites}
        middle |= {f"{s} action": self.actions[len(self.actions) // 2] for s in sites}
        alone = [
            {**middle, **{f"{other} action": OFF for other in sites if other != site}}
            for site in sites
        ]
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "starts", tuple(alone))

    def sites(self) -> tuple[str, ...]:
        """Return the sites where a latent was selected."""
        return tuple(site for site, found in self.latents.items() if found.latents)

    def _site_grid(self, site: str, alone: bool) -> dict[str, tuple[Hashable, ...]]:
        most = len(self.latents[site].latents)
        off = () if alone else (OFF,)
        return {
            f"{site} ranking": self._rankings(site),
            f"{site} k": tuple(k for k in self.k if k <= most) or (most,),
            f"{site} gate": self.gates,
            f"{site} action": (*off, *self.actions),
            f"{site} without": ((),),
        }

    def _rankings(self, site: str) -> tuple[str, ...]:
        """Return the ways to rank that choose a latent at a site."""
        names = dict.fromkeys(
            name
            for latent in self.latents[site].latents
            for name, score in latent.scores.items()
            if score is not None
        )
        if not self.rankings:
            return (FILE, *(name for name in names if name != FILE))
        kept = tuple(name for name in self.rankings if name == FILE or name in names)
        if not kept:
            raise ConfigError(
                f"the selection for {site} ranks the latents of {self.concept!r} by "
                f"{FILE}, {', '.join(names)}, not by {', '.join(self.rankings)}"
            )
        return kept

    def at(self, setting: Setting) -> dict[str, SiteSetting]:
        """Return what a setting does at each site that it edits."""
        values = dict(setting)
        found = {}
        for site in self.sites():
            if values[f"{site} action"] != OFF:
                without = values[f"{site} without"]
                found[site] = SiteSetting(
                    ranking=str(values[f"{site} ranking"]),
                    k=int(str(values[f"{site} k"])),
                    gate=float(str(values[f"{site} gate"])),
                    action=str(values[f"{site} action"]),
                    without=tuple(without),  # type: ignore[arg-type]
                )
        return found

    def setting(self, sites: Mapping[str, SiteSetting]) -> Setting:
        """Return the setting that does this at some sites and nothing elsewhere."""
        values: dict[str, object] = {}
        for site in self.sites():
            idle = {name: self.starts[0][f"{site} {name}"] for name in _NAMES}
            one = sites.get(site)
            mine = idle if one is None else {n: getattr(one, n) for n in _NAMES}
            mine["action"] = OFF if one is None else one.action
            values |= {f"{site} {name}": mine[name] for name in mine}
        return tuple((name, values[name]) for name in self.grid)

    def edits(self, setting: Setting) -> dict[str, SiteEdit]:
        """Return the edits that a setting stands for; none if it leaves all alone."""
        return {
            site: _edit(
                [one for a, b in self._bands(site, mine) for one in ranked[a:b]],
                mine.gate,
                mine.action,
            )
            for site, mine in self.at(setting).items()
            for ranked in [self._ranked(site, mine.ranking)]
        }

    def mask(self, setting: Setting) -> Hashable:
        """Return what tells a setting's edit from others: some rank alike."""
        return tuple(
            (site, frozenset(zip(e.latents, e.gamma, e.shift, e.gate, strict=True)))
            for site, e in sorted(self.edits(setting).items())
        )

    def parts(self, setting: Setting) -> tuple[str, ...]:
        """Return the names of the candidates that are a setting's edit together."""
        return tuple(
            self._name(site, mine, band)
            for site, mine in self.at(setting).items()
            for band in self._bands(site, mine)
        )

    def candidates(self) -> dict[str, dict[str, SiteEdit]]:
        """Return all candidates by name."""
        found: dict[str, dict[str, SiteEdit]] = {}
        for site in self.sites():
            for mine in self._widest(site):
                ranked = self._ranked(site, mine.ranking)
                for first, stop in self._bands(site, mine):
                    name = self._name(site, mine, (first, stop))
                    edit = _edit(ranked[first:stop], mine.gate, mine.action)
                    found[name] = {site: edit}
        return found

    def widest(self) -> int:
        """Return how many latents an edit has at most, at a site."""
        return max(max(self._counts(site)) for site in self.sites())

    def most_parts(self) -> int:
        """Return how many candidates a setting is made of at most."""
        return sum(
            max(len(self._bands(site, mine)) for mine in self._widest(site))
            for site in self.sites()
        )

    def _counts(self, site: str) -> list[int]:
        return [int(str(k)) for k in self.grid[f"{site} k"]]

    def _bands(self, site: str, mine: SiteSetting) -> list[tuple[int, int]]:
        """Return the ranks [first, stop) that an edit at a site is made of.

        A band ends at every k of the grid, so all settings share them, and has few
        latents, so that a part of an edit can be pruned.
        """
        counts = self._counts(site)
        stop = min(mine.k, len(self._ranked(site, mine.ranking)))
        edges = {0, *counts, *range(BAND, max(counts), BAND)}
        bands = pairwise(sorted({e for e in edges if e < stop} | {stop}))
        return [band for band in bands if band[0] not in mine.without]

    def _widest(self, site: str) -> Iterator[SiteSetting]:
        """Yield every ranking, gate and action with all latents that are chosen."""
        most = max(self._counts(site))
        for ranking in self.grid[f"{site} ranking"]:
            for gate in self.gates:
                for action in self.actions:
                    yield SiteSetting(
                        ranking=str(ranking), k=most, gate=gate, action=action
                    )

    def smaller(self, setting: Setting) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield what may be pruned: a site, and first ranks of some of its bands.

        About a quarter of a site's latents at a time, the last ranked first.
        """
        for site, mine in self.at(setting).items():
            chunk: list[tuple[int, int]] = []
            quarter = max(1, mine.k // 4)
            for band in reversed(self._bands(site, mine)):
                chunk.append(band)
                if sum(b - a for a, b in chunk) >= quarter:
                    yield site, tuple(a for a, _ in chunk)
                    chunk = []
            if chunk:
                yield site, tuple(a for a, _ in chunk)

    def pruned(
        self, setting: Setting, site: str, bands: Sequence[int]
    ) -> Setting | None:
        """Return a setting without some bands; None if that leaves a site nothing."""
        here = self.at(setting)
        without = tuple(sorted({*here[site].without, *bands}))
        mine = replace(here[site], without=without)
        return self.setting({**here, site: mine}) if self._bands(site, mine) else None

    def _ranked(self, site: str, ranking: str) -> list[RankedLatent]:
        latents = self.latents[site].latents
        if ranking == FILE:
            return list(latents)
        scored = [(one.scores.get(ranking), one) for one in latents]
        chosen = [(score, one) for score, one in scored if score is not None]
        return [one for _, one in sorted(chosen, key=lambda pair: -pair[0])]

    def _name(self, site: str, mine: SiteSetting, band: tuple[int, int]) -> str:
        ranks = f"{band[0]}-{band[1]}"
        return (
            f"{self.concept}: {site} {mine.ranking} {ranks} gate={mine.gate:g} "
            f"{mine.action}"
        )


_NAMES = ("ranking", "k", "gate", "without")


def _edit(chosen: Sequence[RankedLatent], gate: float, text: str) -> SiteEdit:
    action = Action.parse(text)
    clamped = action.kind == "clamp"
    return SiteEdit(
        latents=tuple(one.latent for one in chosen),
        gamma=(0.0 if clamped else action.amount,) * len(chosen),
        shift=tuple(
            -action.amount * one.max_acts[0] if clamped else 0.0 for one in chosen
        ),
        gate=tuple(_gate(one, gate) for one in chosen),
    )


def _gate(latent: RankedLatent, share: float) -> float:
    """Return the activation to exceed. Raises: ConfigError"""
    if share == 0.0:
        return 0.0
    if share == 1.0:
        level: float | None = latent.max_acts[1]
    else:
        level = latent.quiet.get(level_name(share))
    if level is None:
        raise ConfigError(
            f"the selection has no level {share:g} of latent {latent.latent}; run "
            "sauce select again, or calibrate with the gates 0 and 1 alone"
        )
    return (1 + GATE_MARGIN) * max(level, 0.0)
