# SPDX-License-Identifier: Apache-2.0
"""A mask: what one request forgets, canonical, hashable and with an id; without torch.

It travels as a mark in the request, and keys what caches keep of it: KV blocks by the
request's salt, encoder outputs by the picture's identifier.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vllm_sauce.client import KEY, MAX_STRENGTH, ForgetRequest, means_us
from vllm_sauce.concepts import Catalogue, Concept, is_vision
from vllm_sauce.concepts.site import GENERATED, IMAGE, PROMPT
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import (
    ConfigError,
    InvalidRequestError,
    RequestError,
    TooManyConceptsError,
)

KEPT_MASKS = 4096
"""What is known of so many is kept; there may be any number."""

PREFIX = "sauce:"
"""Begins every cache key of a masked request; no client may use it."""


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

    def tells_turns_apart(self, catalogue: Catalogue) -> bool:
        """Say whether a decoder site edits prompts and answers otherwise.

        What is cached of an answer is then not what it must be as the next prompt.

        Raises: UnknownConceptError
        """
        return self._tells_apart(catalogue, PROMPT, GENERATED)

    def tells_pictures_apart(self, catalogue: Catalogue) -> bool:
        """Say whether a decoder site edits prompts and pictures otherwise.

        What passes for a picture is then not edited as the prompt is.

        Raises: UnknownConceptError
        """
        return self._tells_apart(catalogue, PROMPT, IMAGE)

    def _tells_apart(self, catalogue: Catalogue, one: str, other: str) -> bool:
        kinds = self._decoder_tokens(catalogue)
        return any((one in tokens) != (other in tokens) for tokens in kinds)

    def spares_prompts(self, catalogue: Catalogue) -> bool:
        """Say whether a decoder site edits answers and no prompts.

        What is read off the prompt's last token, as the first of an answer is, is then
        not edited.

        Raises: UnknownConceptError
        """
        kinds = self._decoder_tokens(catalogue)
        return any(GENERATED in tokens and PROMPT not in tokens for tokens in kinds)

    def _decoder_tokens(self, catalogue: Catalogue) -> list[tuple[str, ...]]:
        return [
            edit.tokens
            for name in self.names()
            for site, edit in catalogue.concept(name).edits.items()
            if not is_vision(site)
        ]

    def at_tokens(self, catalogue: Catalogue, site: str, kind: str) -> Mask | None:
        """Return the part of this mask that acts on tokens of a kind, None for none.

        It is of use in a site's table alone: no request bears its id.

        Raises: UnknownConceptError
        """
        edits = [
            (pair, catalogue.concept(pair[0]).edits.get(site)) for pair in self.concepts
        ]
        here = [(pair, edit) for pair, edit in edits if edit is not None]
        kept = tuple(pair for pair, edit in here if kind in edit.tokens)
        if len(kept) == len(here):
            return self if kept else None
        names = ",".join(json.dumps(name) for name, _ in kept)
        return Mask(kept, f"{self.mask_id}:{names}") if kept else None

    def to_wire(self) -> dict[str, object]:
        """Return the JSON-able form that ``from_wire`` reads."""
        return {
            "concepts": [[name, strength] for name, strength in self.concepts],
            "mask_id": self.mask_id,
        }

    @classmethod
    def from_wire(cls, data: Any, digest: str) -> Mask:
        """Read what ``to_wire`` wrote under the bundle of this digest.

        Raises: InvalidRequestError for anything else.
        """
        try:
            pairs = [(name, strength) for name, strength in data["concepts"]]
            mask = cls.of(pairs, digest)
            written = mask.to_wire() == data and all(
                type(name) is str
                and type(strength) is float
                and 0 < strength <= MAX_STRENGTH
                for name, strength in pairs
            )
        except (KeyError, OverflowError, TypeError, ValueError):
            written = False
        if not written or not pairs:
            raise InvalidRequestError(
                "a request reached the engine with a mask whose id does not fit its "
                "concepts and this server's bundle"
            )
        return mask


@dataclass(frozen=True, slots=True)
class Checked:
    """The mark of a request that the engine core let in: workers take no other.

    No client can send one: it is no JSON.
    """

    mask: Mask | None


def marked(
    extra_args: Mapping[str, Any] | None, mark: Mapping[str, object] | Checked
) -> dict[str, Any]:
    """Return extra arguments with a mark in the place of all keys that mean us."""
    kept = {k: v for k, v in (extra_args or {}).items() if not means_us(k)}
    return {**kept, KEY: mark}


def resolve_mask(
    request: ForgetRequest | None,
    catalogue: Catalogue,
    digest: str,
    config: SauceConfig,
) -> Mask | None:
    """Return the mask of a request, or None if there is nothing to forget.

    A concept of ``config.forget`` is in every mask, at strength 1 or more.

    Raises: UnknownConceptError, TooManyConceptsError
    """
    strengths: dict[str, float] = {}
    if request is not None:
        for name in request.forget:
            # Checked at strength 0 too: a wrong name is a mistake at any strength.
            catalogue.concept(name)
            if request.strength > 0:
                strengths[name] = request.strength
    for name in config.forget:
        catalogue.concept(name)
        strengths[name] = max(1.0, strengths.get(name, 0.0))
    if not strengths:
        return None
    check_size(strengths, catalogue, config)
    return Mask.of(strengths.items(), digest)


def check_mandatory(catalogue: Catalogue, config: SauceConfig) -> None:
    """Refuse mandatory concepts that no request could ask for, or any could evade.

    Raises: ConfigError
    """
    try:
        for name in config.forget:
            catalogue.concept(name)
        check_size(config.forget, catalogue, config)
        refuse_weak(config.forget, catalogue, config)
    except RequestError as error:
        raise ConfigError(f"mandatory concepts: {error}") from error
    for name in sorted(set(config.forget) - set(config.allow_weak)):
        if Mask.of([(name, 1.0)], "").spares_prompts(catalogue):
            raise ConfigError(
                f"mandatory concepts: {name!r} is edited in answers and not in "
                "prompts: an answer's first token is the unedited model's, and who "
                "sends it back as a prompt, again and again, reads all of it so; let "
                "the bundle edit prompts too (tokens), or allow it: "
                f"--sauce-allow-weak {name}"
            )


def without_decoder(names: Iterable[str], catalogue: Catalogue) -> tuple[str, ...]:
    """Return the concepts that no decoder site edits in texts, sorted.

    A mask of these changes pictures only: a question without one is answered plain.

    Raises: UnknownConceptError
    """
    return tuple(
        name
        for name in sorted(set(names))
        if not any(
            {PROMPT, GENERATED} & set(edit.tokens)
            for site, edit in catalogue.concept(name).edits.items()
            if not is_vision(site)
        )
    )


def refuse_weak(
    names: Iterable[str], catalogue: Catalogue, config: SauceConfig
) -> None:
    """Refuse concepts that the bundle does not forget, unless the operator allows them.

    Raises: InvalidRequestError, UnknownConceptError
    """
    asked = map(catalogue.concept, sorted(set(names) - set(config.allow_weak)))
    weak = [concept for concept in asked if not concept.forgotten]
    if not weak:
        return
    told = "; ".join(f"{one.name!r} ({_figures(one)})" for one in weak)
    raise InvalidRequestError(
        f"this bundle was found not to forget {told}, and to serve it would be to "
        "answer as if it did; calibrate again, or let the operator allow it: "
        f"--sauce-allow-weak {weak[0].name}"
    )


def _figures(concept: Concept) -> str:
    found = {name: concept.scores.get(name) for name in ("UAg", "UAd")}
    told = [f"{n} {value:.2f}" for n, value in found.items() if value is not None]
    return ", ".join(told) or "no figures"


def check_size(names: Iterable[str], catalogue: Catalogue, config: SauceConfig) -> None:
    """Refuse a mask larger than the server's limits. Raises: TooManyConceptsError"""
    wanted = sorted(set(names))
    if len(wanted) > config.max_concepts:
        raise TooManyConceptsError(
            f"a mask holds at most {config.max_concepts} concepts, got {len(wanted)} "
            "(mandatory ones count); forget fewer or raise max_concepts"
        )
    for site in catalogue.sites():
        num_latents = len(catalogue.latents(site, wanted))
        if num_latents > config.max_latents:
            raise TooManyConceptsError(
                f"a mask edits at most {config.max_latents} latents at a site, these "
                f"{len(wanted)} concepts need {num_latents} at {site!r}; "
                "forget fewer or raise max_latents"
            )


def salted(salt: str | None, mask: Mask) -> str:
    """Return the salt of a masked request's first KV block, and so of its chain."""
    return f"{PREFIX}{mask.mask_id}" + (f":{salt}" if salt else "")


def renamed(identifier: str, mask: Mask) -> str:
    """Return the identifier of an image that is encoded under a mask."""
    return f"{PREFIX}{mask.mask_id}:{identifier}"


def mask_id_of(identifier: str) -> str | None:
    """Return the id of the mask in an image's identifier, None for a plain one."""
    if not identifier.startswith(PREFIX):
        return None
    return identifier[len(PREFIX) :].partition(":")[0]


def refuse_forged_keys(salt: str | None, uuids: Iterable[Any]) -> None:
    """Refuse a client's cache keys that look like ours.

    With them a plain request could read, or poison, the blocks of a masked one.

    Raises: InvalidRequestError.
    """
    if (salt or "").startswith(PREFIX):
        raise InvalidRequestError(
            f"cache_salt must not begin with {PREFIX!r}, which vllm-sauce reserves; "
            "choose another salt"
        )
    if any(isinstance(uuid, str) and uuid.startswith(PREFIX) for uuid in uuids):
        raise InvalidRequestError(
            f"an image's uuid must not begin with {PREFIX!r}, which vllm-sauce "
            "reserves; choose another uuid"
        )


@functools.lru_cache(maxsize=KEPT_MASKS)
def _mask_id(concepts: tuple[tuple[str, float], ...], digest: str) -> str:
    text = json.dumps(
        {"bundle": digest, "concepts": concepts},
        sort_keys=True,
        separators=(",", ":"),
        allow_nan=False,
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()
