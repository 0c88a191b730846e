# SPDX-License-Identifier: Apache-2.0
"""An inspection as one HTML file that needs no other and no network."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vllm_sauce import __version__
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.metrics import NAMES
from vllm_sauce.files import write_whole
from vllm_sauce.inspection import dose_chart as chart
from vllm_sauce.inspection.activation_maps import ActivationMap
from vllm_sauce.inspection.concept_effects import Damage
from vllm_sauce.inspection.heat_maps import (
    heat_uri,
    is_small,
    picture_uris,
    scale_colours,
)
from vllm_sauce.inspection.inspection import ConceptView, Inspection, LatentView
from vllm_sauce.pages import pages_of

PAGES = Path(__file__).parent / "pages"
TEMPLATE = "inspection.html.j2"
OPEN_LATENTS = 2
"""Latents of a concept that are open in a report on many."""
MOST_DAMAGES = 8
"""Other concepts listed before the rest is folded away."""
NOTICEABLE = 0.005
"""Smaller changes are counted only, in a report on many concepts."""
MOST_WORD_LINES = 3

SCORES = {
    "UAg": "generated answers on pictures with it that no longer name it",
    "UAd": "yes/no questions on pictures with it that are answered “no”",
    "IRA": "accuracy kept on other concepts of its domain",
    "CRA": "accuracy kept on other domains",
    "HM": "harmonic mean of the four",
}


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture with its heat map."""

    row: int
    heat: str
    peak: float
    shows: bool
    """Whether the picture shows the concept."""
    concepts: tuple[str, ...]
    key: str
    alt: str


@dataclass(frozen=True, slots=True)
class Words:
    """A prompt with each token's share of the scale."""

    number: int
    key: str
    tokens: tuple[tuple[str, float, float], ...]
    """Text, activation, and its share of the strongest."""


@dataclass(frozen=True, slots=True)
class Strip:
    """A latent's row of pictures."""

    view: LatentView
    most: float
    """Where the colour scale ends."""
    tiles: tuple[Tile, ...]
    words: tuple[Words, ...]


def render(inspection: Inspection) -> str:
    """Return the page."""
    environment = pages_of(PAGES)
    environment.filters.update(
        percent=percent, points=points, number=number, json=as_json_text
    )
    environment.tests["noticeable"] = lambda damage: abs(damage.drop) >= NOTICEABLE
    names = [view.concept.name for view in inspection.concepts]
    return environment.get_template(TEMPLATE).render(
        it=inspection,
        ids={name: f"concept-{i}" for i, name in enumerate(names)},
        pictures=picture_uris(inspection.pictures),
        small=[row for row, x in inspection.pictures.items() if is_small(x)],
        strips={
            view.concept.name: [strip(inspection, view, item) for item in view.latents]
            for view in inspection.concepts
        },
        charts={
            view.concept.name: chart.dose_chart(view.effects)
            for view in inspection.concepts
        },
        domains=_domains(inspection.concepts),
        matrix=_matrix(inspection) if len(names) > 1 else None,
        summaries={view.concept.name: summary(view) for view in inspection.concepts},
        gradient=_gradient(),
        asked=_asked(inspection),
        chart=chart,
        score_names=SCORES,
        metric_names=NAMES,
        open_latents=OPEN_LATENTS if len(names) > 1 else inspection.settings.latents,
        most_damages=MOST_DAMAGES,
        version=__version__,
    )


def write_page(inspection: Inspection, path: str | Path) -> int:
    """Write the page, whole or not at all; returns its size in bytes.

    Raises: ConfigError if it cannot be written
    """
    data = render(inspection).encode("utf-8")
    write_whole(Path(path), data, ConfigError)
    return len(data)


def strip(inspection: Inspection, view: ConceptView, latent: LatentView) -> Strip:
    """Return a latent's pictures and words, on one scale."""
    most = max((found.peak for found in latent.maps), default=0.0)
    tiles: list[Tile] = []
    words: list[Words] = []
    for order, found in enumerate(latent.maps, start=1):
        if found.grid is not None and found.row in inspection.pictures:
            tiles.append(_tile(inspection, view, found, most))
        fires = any(act > 0 for _, act in found.words)
        if found.words and (found.grid is None or fires):
            if found.grid is not None and len(words) >= MOST_WORD_LINES:
                continue
            words.append(_words(order, inspection.samples[found.row].key, found, most))
    return Strip(latent, most, tuple(tiles), tuple(words))


def _words(number: int, key: str, found: ActivationMap, most: float) -> Words:
    scale = most if most > 0 else 1.0
    tokens = ((t, act, max(0.0, min(1.0, act / scale))) for t, act in found.words)
    return Words(number, key, tuple(tokens))


def _tile(
    inspection: Inspection, view: ConceptView, found: ActivationMap, most: float
) -> Tile:
    sample = inspection.samples[found.row]
    assert found.grid is not None
    name = view.concept.name
    firing, patches = int((found.grid > 0).sum()), found.grid.numel()
    fires = f"fires in {firing} of {patches} patches"
    if patches == 1:
        fires = "fires somewhere" if firing else "does not fire"
    shown = ", ".join(sample.concepts) or "no known concept"
    return Tile(
        found.row,
        heat_uri(found.grid, most),
        found.peak,
        name in sample.concepts,
        sample.concepts,
        sample.key,
        f"{sample.key}, showing {shown}; {fires}, at most {found.peak:.2f}",
    )


def summary(view: ConceptView) -> str:
    """Return in a sentence or two what forgetting the concept does at strength 1."""
    own, damages = view.effects.own, view.effects.damages
    if own is None:
        told = "No picture here shows it, so nothing was asked about it."
    else:
        told = (
            f"At strength 1 the right answers about it fall from "
            f"{percent(own.before)} % to {percent(own.after)} %."
        )
    if not damages:
        return told
    mean = math.fsum(damage.drop for damage in damages) / len(damages)
    worst = damages[0]
    return (
        f"{told} The {len(damages)} others lose {points(mean)} points on average, "
        f"{worst.name} the most with {points(worst.drop)}."
    )


def _domains(views: Sequence[ConceptView]) -> dict[str, list[ConceptView]]:
    grouped: dict[str, list[ConceptView]] = {}
    for view in views:
        grouped.setdefault(view.concept.domain, []).append(view)
    return {domain: grouped[domain] for domain in sorted(grouped)}


def _matrix(
    inspection: Inspection,
) -> tuple[list[str], list[tuple[str, list[Damage | None]]]]:
    """Return columns, and rows of what forgetting one concept costs each of them."""
    catalogue = inspection.bundle.catalogue
    columns = [name for names in catalogue.domains().values() for name in names]
    views = {view.concept.name: view for view in inspection.concepts}
    rows = []
    for name in (name for name in columns if name in views):
        effects = views[name].effects
        found: Mapping[str, Damage] = {d.name: d for d in effects.damages}
        if effects.own is not None:
            found = {**found, name: effects.own}
        rows.append((name, [found.get(column) for column in columns]))
    return columns, rows


def _asked(inspection: Inspection) -> dict[str, list[str]]:
    """Return the questions, and the domains that they are asked about."""
    wording = inspection.wording
    asked: dict[str, list[str]] = {}
    for domain in inspection.bundle.catalogue.domains():
        for text in (wording.of_domain(domain).exists[0], wording.naming(domain)):
            if text is not None:
                asked.setdefault(text, []).append(domain)
    return asked


def _gradient() -> str:
    """Return the heat scale as a CSS gradient."""
    stops = [f"rgba({r},{g},{b},{a / 255:.2f})" for r, g, b, a in scale_colours()[1:]]
    return f"linear-gradient(to right,{','.join(stops)})"


def percent(share: float | None, digits: int = 0) -> str:
    """Return a share as per cent without the sign; a dash if it is not known."""
    if share is None or not math.isfinite(share):
        return "–"
    return f"{100 * share:.{digits}f}"


def points(share: float | None) -> str:
    """Return a difference of shares in percentage points, one digit."""
    text = percent(share, 1)
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def number(value: float | None, digits: int = 2) -> str:
    """Return a number; a dash if it is not known."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def as_json_text(value: object) -> str:
    """Return JSON a person reads."""
    return json.dumps(value, indent=1, ensure_ascii=False, default=str)
