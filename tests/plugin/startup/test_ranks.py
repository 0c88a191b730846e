# SPDX-License-Identifier: Apache-2.0
"""What all ranks must have said before an engine serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sauce.errors import CanaryError, ConfigError
from vllm_sauce.plugin.startup.ranks import check

SAUCE = {"bundle": "/b", "digest": "d" * 64, "sites": ["decoder.1", "vision"]}


def config(sauce: Any = SAUCE, ranks: int = 1, stages: int = 1) -> Any:
    """Return what of an engine's configuration is asked for."""
    return SimpleNamespace(
        additional_config={} if sauce is None else {"sauce": sauce},
        parallel_config=SimpleNamespace(
            tensor_parallel_size=ranks, pipeline_parallel_size=stages
        ),
    )


def rank(*sites: str, **changes: Any) -> dict[str, Any]:
    """Return a rank's report."""
    report = {"settings": SAUCE, "digest": SAUCE["digest"], "sites": list(sites)}
    return {**report, "kernel": "cpu", "proven": True, **changes}


BOTH = "decoder.1", "vision"
PLAIN: dict[str, Any] = {"settings": None, "sites": [], "proven": False}


@pytest.mark.parametrize(
    ("vllm_config", "reports"),
    [
        (config(), [rank(*BOTH)]),
        (config(ranks=2), [rank(*BOTH)] * 2),
        (config(stages=3), [rank("vision"), rank("decoder.1"), rank()]),
        (config(ranks=2, stages=2), [rank("vision")] * 2 + [rank("decoder.1")] * 2),
        (config(None), [PLAIN]),
    ],
)
def test_every_site_is_edited_by_each_rank_of_its_stage(
    vllm_config: Any, reports: list[Any]
) -> None:
    check(vllm_config, reports)


@pytest.mark.parametrize(
    ("vllm_config", "reports", "says"),
    [
        (config(), [rank("vision")], "decoder.1 is edited by 0 ranks of 1"),
        (
            config(ranks=2),
            [rank(*BOTH), rank("vision")],
            "decoder.1 is edited by 1 ranks of 2",
        ),
        (config(ranks=2), [rank(*BOTH)], "1 ranks reported; .* by 1 ranks of 2"),
        (
            config(stages=2),
            [rank("vision"), rank(*BOTH)],
            "vision is edited by 2 ranks of 1",
        ),
        (
            config(ranks=2),
            [rank(*BOTH), rank(*BOTH, digest="e")],
            "rank 1 has bundle e",
        ),
        (
            config(ranks=2),
            [rank(*BOTH), rank(*BOTH, kernel="eager")],
            "rank 1 edits by another kernel than rank 0",
        ),
        (
            config(ranks=2),
            [rank(*BOTH), rank(*BOTH, weights="e")],
            "rank 1 has other weights than rank 0",
        ),
        (
            config(ranks=2),
            [rank(*BOTH), rank(*BOTH, proven=False)],
            "nothing proves that rank 1 edits",
        ),
        # The model was loaded, and nothing put into it.
        (config(), [{**PLAIN, "settings": SAUCE}], "rank 0 has bundle None"),
    ],
)
def test_what_a_rank_lacks_is_refused(
    vllm_config: Any, reports: list[Any], says: str
) -> None:
    with pytest.raises(CanaryError, match=says):
        check(vllm_config, reports)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (None, [SAUCE]),
        (SAUCE, [None]),
        (SAUCE, [SAUCE, {**SAUCE, "digest": "1" * 64}]),
        (SAUCE, [{**SAUCE, "forget": []}]),
    ],
)
def test_other_settings_are_refused(mine: Any, theirs: list[Any]) -> None:
    with pytest.raises(ConfigError, match="disagree about sauce") as told:
        check(config(mine), [rank(*BOTH, settings=one) for one in theirs])
    assert "start all processes" in str(told.value).replace("\n", " ")
