# SPDX-License-Identifier: Apache-2.0
"""A mask: what one request forgets, canonical, hashable and with an id."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from vllm_sauce.client import MAX_STRENGTH
from vllm_sauce.concepts import Catalogue
from vllm_sauce.errors import (
    ConfigError,
    InvalidRequestError,
    TooManyConceptsError,
    UnknownConceptError,
)
from vllm_sauce.unlearning.request import ForgetRequest
from vllm_sauce.unlearning.wire import KEY

_MASK_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Mask:
    """Concepts with strengths; equal masks of one bundle have equal ids."""

    concepts: tuple[tuple[str, float], ...]
    """(name, strength), sorted by name."""

    mask_id: str
    """SHA-256 over the concepts and the bundle's digest, 64 hex digits."""

    @classmethod
    def of(cls, concepts: Iterable[tuple[str, float]], digest: str) -> Mask:
        """Return the mask of (name, strength) pairs under the bundle of this digest."""
        strongest: dict[str, float] = {}
        for name, strength in concepts:
            strongest[name] = max(float(strength), strongest.get(name, 0.0))
        concepts = tuple(sorted(strongest.items()))
        return cls(concepts=concepts, mask_id=_mask_id(concepts, digest))

    def names(self) -> tuple[str, ...]:
        """Return the concepts' names, sorted."""
        return tuple(name for name, _ in self.concepts)

    def sites(self, catalogue: Catalogue) -> tuple[str, ...]:
        """Return the sites this mask edits, sorted.

        Raises: UnknownConceptError
        """
        edited = {s for name in self.names() for s in catalogue.concept(name).edits}
        return tuple(sorted(edited))

    def to_wire(self) -> dict[str, object]:
        """Return the JSON-able form that ``from_wire`` reads."""
        return {
            "concepts": [[name, strength] for name, strength in self.concepts],
            "mask_id": self.mask_id,
        }

    @classmethod
    def from_wire(
        cls, data: Mapping[str, object] | object, digest: str | None = None
    ) -> Mask:
        """Read a mask; with the bundle's digest its id is recomputed and compared.

        Raises: InvalidRequestError
        """
        if not isinstance(data, Mapping) or set(data) != {"concepts", "mask_id"}:
            raise InvalidRequestError("a mask has exactly 'concepts' and 'mask_id'")
        concepts, mask_id = _wire_concepts(data["concepts"]), data["mask_id"]
        if not isinstance(mask_id, str) or not _MASK_ID.fullmatch(mask_id):
            raise InvalidRequestError("a mask's id is 64 hexadecimal digits")
        if digest is not None and mask_id != _mask_id(concepts, digest):
            raise InvalidRequestError(
                "a mask's id does not fit its concepts and this server's bundle"
            )
        return cls(concepts=concepts, mask_id=mask_id)


def admitted_mask(
    extra_args: Mapping[str, Any] | None,
    digest: str,
    mandatory: Sequence[str],
    known: Mapping[str, Mask] = MappingProxyType({}),
) -> Mask | None:
    """Return the mask that admission has put into a request, None for a plain one.

    ``known`` masks are not read again.

    Raises: InvalidRequestError for a request without admission's mark, or with a mask
        of another bundle, or without the mandatory concepts
    """
    mark = (extra_args or {}).get(KEY)
    if not isinstance(mark, Mapping) or set(mark) != {"mask"}:
        raise InvalidRequestError(
            "a request reached the engine without passing sauce's admission; refusing "
            "to serve it unedited (every process that takes requests needs the plugin)"
        )
    wire = mark["mask"]
    if wire is None:
        mask = None
    else:
        mask = known.get(wire.get("mask_id", "")) if isinstance(wire, Mapping) else None
        mask = mask or Mask.from_wire(wire, digest)
    missing = sorted(set(mandatory) - set(() if mask is None else mask.names()))
    if missing:
        raise InvalidRequestError(
            f"a request reached the engine without the concepts that every one must "
            f"forget here: {', '.join(missing)}"
        )
    return mask


def resolve_mask(
    request: ForgetRequest | None,
    catalogue: Catalogue,
    mandatory: Sequence[str],
    digest: str,
    max_latents: int,
    max_concepts: int = 64,
) -> Mask | None:
    """Return the mask of a request, or None if there is nothing to forget.

    A mandatory concept is in every mask, at strength 1 or more.

    Raises: UnknownConceptError, TooManyConceptsError
    """
    strengths: dict[str, float] = {}
    if request is not None:
        for name in request.forget:
            # Checked at strength 0 too: a wrong name is a mistake at any strength.
            catalogue.concept(name)
            if request.strength > 0:
                strengths[name] = request.strength
    for name in mandatory:
        catalogue.concept(name)
        strengths[name] = max(1.0, strengths.get(name, 0.0))
    if not strengths:
        return None
    check_size(strengths, catalogue, max_latents, max_concepts)
    return Mask.of(strengths.items(), digest)


def check_mandatory(
    mandatory: Sequence[str],
    catalogue: Catalogue,
    max_latents: int | None = None,
    max_concepts: int | None = None,
) -> None:
    """Refuse mandatory concepts that the bundle does not have or the limits forbid.

    Raises: ConfigError
    """
    try:
        for name in mandatory:
            catalogue.concept(name)
        check_size(mandatory, catalogue, max_latents, max_concepts)
    except (UnknownConceptError, TooManyConceptsError) as error:
        raise ConfigError(f"mandatory concepts: {error}") from error


def without_decoder(names: Iterable[str], catalogue: Catalogue) -> tuple[str, ...]:
    """Return the concepts that no decoder site edits, sorted.

    A mask of these changes pictures only: a question without one is answered plain.

    Raises: UnknownConceptError
    """
    return tuple(
        name
        for name in sorted(set(names))
        if set(catalogue.concept(name).edits) == {"vision"}
    )


def check_size(
    names: Iterable[str],
    catalogue: Catalogue,
    max_latents: int | None,
    max_concepts: int | None,
) -> None:
    """Refuse a mask larger than the server's limits. Raises: TooManyConceptsError"""
    wanted = sorted(set(names))
    if max_concepts is not None and len(wanted) > max_concepts:
        raise TooManyConceptsError(
            f"a mask holds at most {max_concepts} concepts, got {len(wanted)} "
            "(mandatory ones count); forget fewer or raise max_concepts"
        )
    if max_latents is None:
        return
    for site in catalogue.sites():
        num_latents = len(catalogue.latents(site, wanted))
        if num_latents > max_latents:
            raise TooManyConceptsError(
                f"a mask edits at most {max_latents} latents at a site, these "
                f"{len(wanted)} concepts need {num_latents} at {site!r}; "
                "forget fewer or raise max_latents"
            )


def _mask_id(concepts: tuple[tuple[str, float], ...], digest: str) -> str:
    text = json.dumps(
        {"bundle": digest, "concepts": concepts},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _wire_concepts(value: object) -> tuple[tuple[str, float], ...]:
    if not isinstance(value, list | tuple) or not value:
        raise InvalidRequestError("a mask's concepts are a list of [name, strength]")
    concepts: list[tuple[str, float]] = []
    for item in value:
        if not isinstance(item, list | tuple) or len(item) != 2:
            raise InvalidRequestError("a mask's concepts are pairs [name, strength]")
        name, strength = item
        if (
            not isinstance(name, str)
            or isinstance(strength, bool)
            or not isinstance(strength, int | float)
            or not 0 < strength <= MAX_STRENGTH
        ):
            raise InvalidRequestError(
                f"a mask's pair is a name and a strength in 0..{MAX_STRENGTH:g}"
            )
        concepts.append((name, float(strength)))
    names = [name for name, _ in concepts]
    if names != sorted(set(names)):
        raise InvalidRequestError("a mask's concepts are sorted and distinct")
    return tuple(concepts)
