# SPDX-License-Identifier: Apache-2.0
"""Which examples rank latents, which choose an edit, which measure the result."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping


def assign_splits(
    labels: Mapping[str, Collection[str]], shares: Mapping[str, float]
) -> dict[str, str]:
    """Return the split of each content, every label's shares kept as near as can be.

    Contents are taken in the order of their digests, so nothing but the contents
    and their labels decides; those with the rarest labels come first, since they leave
    least choice. Each goes where its labels lack most.

    Source: iterative stratification (Sechidis et al. 2011), one pass
    """
    sizes = Counter(name for names in labels.values() for name in names)

    def rarest(content: str) -> tuple[int, str]:
        return min(
            (sizes[name] for name in labels[content]), default=len(labels)
        ), content

    used = [split for split, share in shares.items() if share > 0]
    lacking: dict[tuple[str, str], float] = defaultdict(float)
    found: dict[str, str] = {}
    for content in sorted(labels, key=rarest):
        # The empty label balances the whole.
        # Sums of floats depend on the order, which a set has anew in each process.
        mine = (*sorted(labels[content]), "")
        for name in mine:
            for split in used:
                lacking[name, split] += shares[split]
        best = max(used, key=lambda split: sum(lacking[name, split] for name in mine))
        for name in mine:
            lacking[name, best] -= 1
        found[content] = best
    return found
