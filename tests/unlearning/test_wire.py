# SPDX-License-Identifier: Apache-2.0
"""Which keys of a request are meant for us."""

from __future__ import annotations

import pytest

from vllm_sauce.unlearning.wire import carry, has_sauce_keys, means_us


@pytest.mark.parametrize(
    "key",
    [
        "sauce",
        "sauce_forget",
        " sauce_forget",
        "sauce_forget\u00a0",
        "Sauce-Forget",
        "SAUCE_STRENGTH",
        "sauceForget",
        "sauce_forgot",
        "vllm_sauce_forget",
        "x-sauce-forget",
        "\uff53\uff41\uff55\uff43\uff45_forget",
        "sau\u00adce_forget",
        "\u200bsauce\u200b_forget",
        "sa_uce_forget",
        "forget",
        " Forget ",
        "FORGET:",
    ],
)
def test_what_looks_like_ours_is_ours(key: str) -> None:
    """Any spelling a person or a client library may make of our keys."""
    assert means_us(key)
    assert has_sauce_keys({"other": 1, key: 2})
    carried = carry({"other": 1, key: 2}, None)
    assert carried == {"other": 1, "sauce": {"mask": None}}


@pytest.mark.parametrize("key", ["source", "strength", "profile", "forge", "", 7, None])
def test_other_keys_are_not(key: object) -> None:
    """Keys of vLLM and of other plugins pass."""
    assert not means_us(key)


def test_carry_replaces_our_keys_by_the_mask() -> None:
    """Only the resolved mask goes on."""
    carried = carry({"sauce_forget": ["a"], "other": 1}, {"mask_id": "x"})
    assert carried == {"other": 1, "sauce": {"mask": {"mask_id": "x"}}}
