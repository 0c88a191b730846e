# SPDX-License-Identifier: Apache-2.0
"""Concepts and the catalogue that holds them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from vllm_sauce.concepts.site import (
    IMAGE,
    SINK,
    SPARING,
    TOKENS,
    check_site,
    is_vision,
)
from vllm_sauce.errors import ConfigError, UnknownConceptError

FORGET_FLOOR = "forget_floor"
"""In the provenance: what UAg and UAd must reach, or it is not forgotten."""
TRIAL = "trial"
"""In the provenance of a concept that is one of calibration's candidates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteEdit:
    """What a concept does at one site: ``z' = gamma * z + shift`` where z > gate."""

    latents: tuple[int, ...]
    """Latents of the site's SAE, each at most once."""

    gamma: tuple[float, ...]
    """Factor on each latent; 1 leaves it, 0 removes it, SAUCE uses -0.5."""

    shift: tuple[float, ...]
    """Constant added to each latent where it is edited."""

    gate: tuple[float, ...]
    """Activation a latent must exceed to be edited; at least 0."""

    tokens: tuple[str, ...] = SPARING
    """Kinds of tokens that are edited, of ``TOKENS``; at the vision site all are of
    pictures."""

    def __post_init__(self) -> None:
        if not self.latents:
            raise ConfigError("an edit needs at least one latent")
        for name in ("gamma", "shift", "gate"):
            _check_numbers(name, getattr(self, name), len(self.latents))
        for latent in self.latents:
            if isinstance(latent, bool) or not isinstance(latent, int) or latent < 0:
                raise ConfigError(f"latents are indices from 0, got {latent!r}")
        if len(set(self.latents)) != len(self.latents):
            raise ConfigError("an edit names each latent once, got a duplicate")
        if min(self.gate) < 0:
            raise ConfigError(f"gate must be at least 0, got {min(self.gate)}")
        kinds = [kind for kind in TOKENS if kind in self.tokens]
        if not kinds or len(kinds) != len(self.tokens):
            raise ConfigError(
                f"tokens are some of {', '.join(TOKENS)}, each once, got "
                f"{', '.join(map(repr, self.tokens)) or 'none'}"
            )
        object.__setattr__(self, "tokens", tuple(kinds))

    @classmethod
    def uniform(
        cls,
        latents: Iterable[int],
        gamma: float = -0.5,
        shift: float = 0.0,
        gate: float = 0.0,
    ) -> SiteEdit:
        """Return the same edit for every latent."""
        rows = tuple(int(latent) for latent in latents)
        return cls(
            latents=rows,
            gamma=(float(gamma),) * len(rows),
            shift=(float(shift),) * len(rows),
            gate=(float(gate),) * len(rows),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """A named set of latents with an edit for each."""

    name: str
    """Exact, case-sensitive name a request uses."""

    domain: str
    """Group of like concepts, for example "objects"."""

    edits: Mapping[str, SiteEdit]
    """Edit at each site, by site name."""

    provenance: Mapping[str, object] = field(default_factory=dict)
    """How the latents were found: method, images, k, ... (JSON)."""

    scores: Mapping[str, float | None] = field(default_factory=dict)
    """How well it works: UAg, UAd, IRA, CRA, ..., shares in 0..1."""

    forgotten: bool = True
    """Whether its edit was found to forget it; a server offers no other unasked."""

    def __post_init__(self) -> None:
        check_concept_text("name", self.name)
        check_concept_text("domain", self.domain)
        if not self.edits:
            raise ConfigError(f"concept {self.name!r} edits no site")
        for site, edit in self.edits.items():
            check_site(site)
            if is_vision(site) and IMAGE not in edit.tokens:
                raise ConfigError(
                    f"concept {self.name!r} would edit no picture: the vision site has "
                    f"tokens of {IMAGE} alone, got {', '.join(edit.tokens)}"
                )


class Catalogue(Mapping[str, Concept]):
    """The concepts of a bundle by name; iterates in sorted order."""

    def __init__(self, concepts: Iterable[Concept] = ()) -> None:
        self._concepts: dict[str, Concept] = {}
        for concept in sorted(concepts, key=lambda item: item.name):
            if concept.name in self._concepts:
                raise ConfigError(f"concept {concept.name!r} is in the catalogue twice")
            self._concepts[concept.name] = concept
        # Asked for with every request.
        self._sites = tuple(
            sorted({site for item in self._concepts.values() for site in item.edits})
        )

    def __getitem__(self, name: str) -> Concept:
        return self._concepts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._concepts)

    def __len__(self) -> int:
        return len(self._concepts)

    def __repr__(self) -> str:
        return f"Catalogue({', '.join(self._concepts)})"

    def concept(self, name: str) -> Concept:
        """Return the concept of exactly this name. Raises: UnknownConceptError"""
        try:
            return self._concepts[name]
        except KeyError:
            raise UnknownConceptError(name, known=self.names()) from None

    def names(self) -> tuple[str, ...]:
        """Return the concepts' names, sorted."""
        return tuple(self._concepts)

    def domains(self) -> dict[str, tuple[str, ...]]:
        """Return the names of each domain's concepts, both sorted."""
        grouped: dict[str, list[str]] = {}
        for concept in self._concepts.values():
            grouped.setdefault(concept.domain, []).append(concept.name)
        return {domain: tuple(grouped[domain]) for domain in sorted(grouped)}

    def weak(self) -> tuple[str, ...]:
        """Return the concepts whose edit was found not to forget them, sorted."""
        return tuple(name for name, one in self._concepts.items() if not one.forgotten)

    def sites(self) -> tuple[str, ...]:
        """Return the sites that some concept edits, sorted."""
        return self._sites

    def _edits_at(self, site: str) -> list[SiteEdit]:
        return [one.edits[site] for one in self._concepts.values() if site in one.edits]

    def token_groups(self, site: str) -> int:
        """Return how many parts of one mask different tokens of a site may need."""
        edits = self._edits_at(site)
        parts = {tuple(kind in edit.tokens for edit in edits) for kind in TOKENS}
        return max(1, sum(map(any, parts)))

    def editing_sink(self) -> tuple[str, ...]:
        """Return the decoder sites where some concept edits the sink, sorted."""
        return tuple(
            site
            for site in self._sites
            if not is_vision(site)
            and any(SINK in edit.tokens for edit in self._edits_at(site))
        )

    def latents(self, site: str, names: Iterable[str] | None = None) -> tuple[int, ...]:
        """Return the distinct latents that concepts (default: all) edit at a site.

        Raises: UnknownConceptError
        """
        used: set[int] = set()
        for name in self._concepts if names is None else names:
            edit = self.concept(name).edits.get(site)
            if edit is not None:
                used.update(edit.latents)
        return tuple(sorted(used))


def check_concept_text(what: str, text: str) -> None:
    """Refuse what cannot be a concept's name or domain. Raises: ConfigError"""
    if not text or text != text.strip() or not text.isprintable():
        raise ConfigError(
            f"a concept's {what} is printable text without outer blanks, got {text!r}"
        )


def _check_numbers(name: str, values: Sequence[float], length: int) -> None:
    if len(values) != length:
        raise ConfigError(
            f"{name} needs one number a latent: {length}, not {len(values)}"
        )
    for value in values:
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise ConfigError(f"{name} must be finite numbers, got {value!r}")
