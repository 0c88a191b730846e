# SPDX-License-Identifier: Apache-2.0
"""The edits a calibration may choose from for one concept, and their names."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.selection_file import RankedLatent, SelectedConcept

UNIT_GAMMA = -1.0
"""Gamma at strength 1: a strength of (1 - gamma) / 2 makes it any other."""


def strength_of(gamma: float) -> float:
    """Return the strength at which an edit of ``UNIT_GAMMA`` acts as gamma."""
    return (1.0 - gamma) / (1.0 - UNIT_GAMMA)


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
        fits = {
            "scale": 0 < strength_of(amount) <= 10,
            "clamp": 0 < amount < float("inf"),
        }
        if not fits.get(kind, False):
            raise ConfigError(
                f'an action is "scale G" with G in -19..1 or "clamp C" with C above 0, '
                f"got {text!r}"
            )
        return cls(kind, amount)


@dataclass(frozen=True, slots=True)
class EditChoices:
    """One concept's grid: sites, ranking, k, gate, action."""

    concept: str
    latents: Mapping[str, SelectedConcept]
    """What ``sauce select`` kept, by site."""
    k: tuple[int, ...]
    gates: tuple[float, ...]
    actions: tuple[str, ...]
    grid: dict[str, tuple[Hashable, ...]] = field(init=False)
    starts: tuple[dict[str, Hashable], ...] = field(init=False)

    def __post_init__(self) -> None:
        for text in self.actions:
            Action.parse(text)
        sites = [site for site, found in self.latents.items() if found.latents]
        if not sites:
            raise ConfigError(
                f"no latent was selected for {self.concept!r} at any site; give more "
                "examples, or an SAE that explains more"
            )
        together: list[Hashable] = [(site,) for site in sites]
        if len(sites) > 1:
            together.append(tuple(sites))
        most = max(len(self.latents[site].latents) for site in sites)
        counts = tuple(k for k in self.k if k <= most) or (most,)
        grid: dict[str, tuple[Hashable, ...]] = {
            "sites": tuple(together),
            "ranking": self._rankings(sites),
            "k": counts,
            "gate": self.gates,
            "action": self.actions,
        }
        middle = {name: values[len(values) // 2] for name, values in grid.items()}
        # A gate that is too high hides what all else does.
        middle["gate"] = min(self.gates)
        starts = tuple(
            {**middle, "sites": one, "ranking": grid["ranking"][0]} for one in together
        )
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "starts", starts)

    def _rankings(self, sites: Sequence[str]) -> tuple[str, ...]:
        """Return the ways to rank that choose a latent at each site."""
        names = {
            "file": None,
            **dict.fromkeys(
                name
                for site in sites
                for latent in self.latents[site].latents
                for name in latent.scores
            ),
        }
        kept = ["file"]
        kept += [
            name
            for name in names
            if name != "file" and all(self._ranked(site, name) for site in sites)
        ]
        return tuple(kept)

    def _ranked(self, site: str, ranking: str) -> list[RankedLatent]:
        latents = self.latents[site].latents
        if ranking == "file":
            return list(latents)
        scored = [(one.scores.get(ranking), one) for one in latents]
        chosen = [(score, one) for score, one in scored if score is not None]
        return [one for _, one in sorted(chosen, key=lambda pair: -pair[0])]

    def edits(self, setting: Mapping[str, object]) -> dict[str, SiteEdit]:
        """Return the edits that a setting stands for."""
        action = Action.parse(str(setting["action"]))
        gamma = action.amount if action.kind == "scale" else 0.0
        return self._edits(setting, action, gamma)

    def mask(self, setting: Mapping[str, object]) -> Hashable:
        """Return what tells a setting's edit from others: some rank alike."""
        edits = self.edits(setting)
        return tuple(
            (site, frozenset(zip(e.latents, e.gamma, e.shift, e.gate, strict=True)))
            for site, e in sorted(edits.items())
        )

    def candidate(self, setting: Mapping[str, object]) -> tuple[str, float]:
        """Return the name of a setting's candidate and the strength to ask it with."""
        action = Action.parse(str(setting["action"]))
        if action.kind == "scale":
            return self._name(setting, "scale"), strength_of(action.amount)
        return self._name(setting, str(setting["action"])), 1.0

    def candidates(self) -> dict[str, dict[str, SiteEdit]]:
        """Return all candidates by name; those that differ in gamma alone are one."""
        found: dict[str, dict[str, SiteEdit]] = {}
        unit = Action("scale", UNIT_GAMMA)
        for sites in self.grid["sites"]:
            for ranking in self.grid["ranking"]:
                for k in self.grid["k"]:
                    for gate in self.grid["gate"]:
                        for text in self.actions:
                            setting = {
                                "sites": sites,
                                "ranking": ranking,
                                "k": k,
                                "gate": gate,
                                "action": text,
                            }
                            name, _ = self.candidate(setting)
                            if name not in found:
                                action = Action.parse(text)
                                one = unit if action.kind == "scale" else action
                                gamma = UNIT_GAMMA if one is unit else 0.0
                                found[name] = self._edits(setting, one, gamma)
        return found

    def _name(self, setting: Mapping[str, object], action: str) -> str:
        sites = "+".join(setting["sites"])  # type: ignore[arg-type]
        rest = f"{setting['ranking']} k={setting['k']} gate={setting['gate']}"
        return f"{self.concept}: {sites} {rest} {action}"

    def _edits(
        self, setting: Mapping[str, object], action: Action, gamma: float
    ) -> dict[str, SiteEdit]:
        edits = {}
        for site in setting["sites"]:  # type: ignore[attr-defined]
            ranked = self._ranked(site, str(setting["ranking"]))
            chosen = ranked[: int(str(setting["k"]))]
            gate = float(str(setting["gate"]))
            shift = [
                -action.amount * one.max_acts[0] if action.kind == "clamp" else 0.0
                for one in chosen
            ]
            edits[site] = SiteEdit(
                latents=tuple(one.latent for one in chosen),
                gamma=(gamma,) * len(chosen),
                shift=tuple(shift),
                gate=tuple(gate * max(one.max_acts[1], 0.0) for one in chosen),
            )
        return edits
