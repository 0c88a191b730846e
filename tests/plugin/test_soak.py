# SPDX-License-Identifier: Apache-2.0
"""Some hundreds of random steps of one engine; ``scripts/soak`` runs thousands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engines import starts_engine
from tests.plugin.conftest import RUNNER
from tests.plugin.support import Reply
from tests.soak.answers import Answers, difference, is_tie
from tests.soak.engine import Difference, Soak, run_block, soak_engine
from tests.soak.universe import REQUESTS, SEEING
from vllm_sauce.plugin.sites.encoder_batches import Announced
from vllm_sauce.plugin.worker.decoder_site import DecoderSite
from vllm_sauce.unlearning import mask

STEPS = 300 if RUNNER == "v1" else 60
MET = (
    "masked requests",
    "requests with embeddings",
    "compared",
    "refused at admission",
    "encoder cache hits",
    "batches of several masks",
    "encoder runs of several masks",
)
MET_SOON = (
    "embeddings by name",
    "refused in the core",
    "aborted",
    "prefix cache hits",
    "preemptions",
    "resets of prefix",
)
"""What V2 is too slow to be sure of meeting here."""


@pytest.fixture(scope="module")
@starts_engine
def soak(bundle_dir: Path) -> Iterator[Soak]:
    """An engine with little room, and no answer known yet."""
    yield Soak(soak_engine(bundle_dir), Answers(None))


@pytest.mark.feature("preemption")
def test_random_steps_answer_as_a_cold_engine(soak: Soak) -> None:
    """Whatever comes between: no difference, no refusal gone wrong, nothing left."""
    block = 0
    while soak.counts["steps"] < STEPS:
        run_block(soak, block, schedules=2)
        block += 1
    met = MET if RUNNER == "v2" else MET + MET_SOON
    assert all(soak.counts[name] for name in met), soak.counts


def _first_label(announced: Announced) -> list[Any]:
    labels = [label for _, label in announced._waiting.values()]
    announced._waiting.clear()
    return labels[:1] * len(labels)


def _nameless_strengths(
    concepts: tuple[tuple[str, float], ...], digest: str, true: Any = mask._mask_id
) -> str:
    return str(true(tuple((name, 9.875) for name, _ in concepts), digest))


BUGS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "all pictures of a run get the first one's mask": (
        Announced,
        "labels",
        lambda self, pairs: _first_label(self),
    ),
    "masks of other strengths have one name": (mask, "_mask_id", _nameless_strengths),
    "slots of tokens are not written": (
        DecoderSite,
        "_write",
        lambda self, slots: None,
    ),
}


@pytest.mark.skipif(RUNNER == "v2", reason="slow there, and about the soak itself")
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(
    soak: Soak, monkeypatch: pytest.MonkeyPatch, bug: str
) -> None:
    """A soak that finds nothing must be one that would."""

    @contextmanager
    def planted() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*BUGS[bug])
            yield

    monkeypatch.setattr(soak, "planted", planted)
    with pytest.raises(Difference, match=r"right is|is right"):
        for block in range(20):
            run_block(soak, block, schedules=2, shrink=False)
    assert not soak.broken


def test_requests_differ(soak: Soak) -> None:
    """Each mask gives each question another answer, or a leak could not be seen."""
    same = [r for r in REQUESTS if r.pictures == ("p0",) and r.question == 2]
    soak.learn(same)
    for at, one in enumerate(same):
        for other in same[:at]:
            mine, theirs = soak.answers.get(one), soak.answers.get(other)
            assert mine is not None and theirs is not None
            assert difference(mine, theirs, 1e-2), (one, other)


def test_only_what_must_be_is_refused() -> None:
    """Embeddings and a vision mask together, nothing else."""
    refused = [request for request in REQUESTS if request.refused]
    assert refused and len(refused) < len(REQUESTS) / 3
    for request in refused:
        assert request.embeds and SEEING & set(request.forget)


def reply(*steps: dict[int, float]) -> Reply:
    """Return an answer of the likeliest token at each step."""
    tokens = tuple(max(step, key=lambda token: step[token]) for step in steps)
    return Reply(tokens, tuple(tuple(sorted(step.items())) for step in steps), 0)


def test_what_counts_as_a_difference() -> None:
    """Other numbers, other tokens, unknown tokens, NaN; but no tie, no beginning."""
    want = reply({1: -0.5, 2: -1.5}, {3: -0.7, 4: -0.70001})
    assert difference(want, want) is None
    assert difference(reply({1: -0.5, 2: -1.5}), want) is None
    tie = reply({1: -0.5, 2: -1.5}, {3: -0.70001, 4: -0.7})
    assert difference(tie, want) is None and is_tie(tie, want)
    after = reply({1: -0.5, 2: -1.5}, {3: -0.70001, 4: -0.7}, {9: -1.0})
    assert difference(after, reply(*map(dict, want.logprobs), {8: -1.0})) is None
    for wrong in (
        reply({1: -0.51, 2: -1.5}),
        reply({1: -1.5, 2: -0.5}),
        reply({1: -0.5, 7: -1.4}),
        reply({1: float("nan"), 2: -1.5}),
        reply({1: -0.5, 2: -1.5}, {3: -0.7, 4: -0.70001}, {5: -0.1}),
    ):
        assert difference(wrong, want), wrong
