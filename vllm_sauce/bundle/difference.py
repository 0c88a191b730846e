# SPDX-License-Identifier: Apache-2.0
"""What changed between two bundles, a line for each change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vllm_sauce.bundle.bundle import Bundle
from vllm_sauce.concepts import Concept


def differences(old: Bundle, new: Bundle) -> tuple[str, ...]:
    """Return one line for each change from one bundle to another; none if equal."""
    model = new.fingerprint.differences(old.fingerprint)
    lines = [f"model: {line}" for line in model]
    if (old.fingerprint.config is None) != (new.fingerprint.config is None):
        known = new.fingerprint.config is not None
        lines.append(f"model: config.json is {'compared now' if known else 'not kept'}")
    return (*lines, *_sites(old, new), *_concepts(old, new))


def _sites(old: Bundle, new: Bundle) -> Iterator[str]:
    for name in sorted(old.sites.keys() | new.sites.keys()):
        if name not in new.sites:
            yield f"site {name}: removed"
        elif name not in old.sites:
            yield f"site {name}: added, {new.sites[name].entry.d_sae} latents"
        else:
            before = old.sites[name].entry.model_dump()
            after = new.sites[name].entry.model_dump()
            for line in _fields(before, after, ignored="file"):
                yield f"site {name}: {line}"


def _concepts(old: Bundle, new: Bundle) -> Iterator[str]:
    before, after = old.catalogue, new.catalogue
    for name in sorted({*before, *after}):
        if name not in after:
            yield f"concept {name}: removed"
        elif name not in before:
            yield f"concept {name}: added"
        else:
            for line in _concept(before[name], after[name]):
                yield f"concept {name}: {line}"


def _concept(old: Concept, new: Concept) -> Iterator[str]:
    if old.domain != new.domain:
        yield f"domain {old.domain} -> {new.domain}"
    for site in sorted(old.edits.keys() | new.edits.keys()):
        if site not in new.edits:
            yield f"no longer edits {site}"
        elif site not in old.edits:
            yield f"now edits {site}, {len(new.edits[site].latents)} latents"
        elif old.edits[site] != new.edits[site]:
            before, after = old.edits[site], new.edits[site]
            gone = len(set(before.latents) - set(after.latents))
            come = len(set(after.latents) - set(before.latents))
            if gone or come:
                yield f"{site}: {come} latents added, {gone} removed"
            if any(
                getattr(before, name) != getattr(after, name)
                for name in ("gamma", "shift", "gate")
            ):
                yield f"{site}: gamma, shift or gate changed"
            if before.tokens != after.tokens:
                old_kinds, new_kinds = map(", ".join, (before.tokens, after.tokens))
                yield f"{site}: edits {new_kinds} tokens, not {old_kinds}"
    if old.forgotten != new.forgotten:
        yield "is forgotten now" if new.forgotten else "is not forgotten any more"
    yield from _fields(dict(old.scores), dict(new.scores))
    if old.provenance != new.provenance:
        yield "found in another way (provenance)"


def _fields(
    old: Mapping[str, object], new: Mapping[str, object], ignored: str = ""
) -> Iterator[str]:
    for name in sorted((old.keys() | new.keys()) - {ignored}):
        if old.get(name) != new.get(name):
            yield f"{name} {_short(old.get(name))} -> {_short(new.get(name))}"


def _short(value: object) -> str:
    """Return a value as a person reads it: hashes by their first characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
