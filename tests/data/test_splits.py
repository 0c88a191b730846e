# SPDX-License-Identifier: Apache-2.0
"""Splits keep every label's shares, and are the same in every process."""

import hashlib
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_sauce.data.splits import assign_splits

LABELS = st.lists(st.sets(st.sampled_from("abcdefgh"), max_size=3), max_size=120)


@given(LABELS)
@settings(max_examples=50, deadline=None)
def test_splits_keep_the_shares_of_the_whole(sets):
    labels = {f"{hash_of(i)}": names for i, names in enumerate(sets)}
    shares = {"selection": 0.5, "calibration": 0.3, "scoring": 0.2, "none": 0.0}
    found = assign_splits(labels, shares)
    assert set(found) == set(labels)
    assert "none" not in found.values()
    for name in "abcdefgh":
        mine = [found[c] for c in labels if name in labels[c]]
        for split, share in shares.items():
            assert abs(mine.count(split) - share * len(mine)) <= 6


def hash_of(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def test_a_label_alone_is_split_to_within_one():
    labels = {hash_of(i): ["a"] for i in range(101)}
    found = list(
        assign_splits(
            labels, {"selection": 0.5, "calibration": 0.25, "scoring": 0.25}
        ).values()
    )
    assert abs(found.count("selection") - 50.5) < 1
    assert abs(found.count("scoring") - 25.25) < 1


def test_the_order_of_labels_decides_nothing():
    """Labels are sets, whose order is another in every process."""
    rng, labels = random.Random(0), {}
    for number in range(1500):
        labels[hash_of(number)] = rng.sample("abcdefgh", rng.randrange(1, 5))
    shares = {"selection": 0.2, "calibration": 0.6, "scoring": 0.2}
    found = assign_splits(labels, shares)
    for _ in range(5):
        other = {name: rng.sample(mine, len(mine)) for name, mine in labels.items()}
        assert assign_splits(other, shares) == found
