# SPDX-License-Identifier: Apache-2.0
"""What an API process counts of its requests."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

import vllm_sauce
from tests.plugin.frontend.test_promises import ask, server, with_mandatory
from vllm_sauce.plugin.frontend.admission import Admission
from vllm_sauce.plugin.frontend.counters import counters

Change = Callable[[], dict[str, float]]


def told() -> dict[str, float]:
    """Return our samples by name and label."""
    return {
        f"{sample.name} {' '.join(sample.labels.values())}": sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name.startswith("sauce_") and sample.name.endswith("_total")
    }


@pytest.fixture
def change() -> Change:
    """Return what says how far each counter went since the test began."""
    before = told()

    def since() -> dict[str, float]:
        now = told()
        moved = {name: value - before.get(name, 0.0) for name, value in now.items()}
        return {name: value for name, value in moved.items() if value}

    return since


def test_requests_are_counted_by_why_they_forget(
    admission: Admission, change: Change
) -> None:
    """Two plain, one for two concepts; a strength of 0 forgets nothing."""
    bodies: list[Any] = [{}, {}, vllm_sauce.forget_body("seen", "read")]
    ask(server(admission), *bodies, vllm_sauce.forget_body("read", strength=0))
    assert change() == {
        "sauce_requests_total nothing": 3.0,
        "sauce_requests_total asked": 1.0,
        "sauce_concept_requests_total seen": 1.0,
        "sauce_concept_requests_total read": 1.0,
    }


def test_requests_under_the_policy_are_counted(
    admission: Admission, change: Change
) -> None:
    """But what is mandatory is not named, unless a client asks for it."""
    strict = server(with_mandatory(admission, "read"))
    bodies: list[Any] = [{}, {}, vllm_sauce.forget_body("seen")]
    ask(strict, *bodies)
    assert change() == {
        "sauce_requests_total mandatory": 2.0,
        "sauce_requests_total asked": 1.0,
        "sauce_concept_requests_total seen": 1.0,
    }
    ask(strict, vllm_sauce.forget_body("read"))
    assert change()["sauce_concept_requests_total read"] == 1.0


def test_refusals_are_counted_once(admission: Admission, change: Change) -> None:
    """By the body's check, or by admission where something is lost on the way."""
    ask(server(admission), vllm_sauce.forget_body("nobody"), {"sauce_forget": ["seen"]})
    assert change() == {
        "sauce_refused_total UnknownConceptError": 1.0,
        "sauce_refused_total InvalidRequestError": 1.0,
    }
    ask(server(admission, lambda _: {}), vllm_sauce.forget_body("seen"))
    assert change()["sauce_refused_total InvalidRequestError"] == 2.0
    assert not any("requests" in name for name in change())


def test_what_admission_refuses_late_was_not_let_in(
    admission: Admission, change: Change
) -> None:
    """Its picture comes as an embedding: seen when the request is made."""
    features = [
        SimpleNamespace(identifier="p", mm_hash="p", modality="image", data={"x": 1})
    ]
    app = server(admission, features=features)
    (reply,) = ask(app, vllm_sauce.forget_body("seen"))
    assert reply.status_code == 400
    assert change() == {"sauce_refused_total InvalidRequestError": 1.0}


def test_what_is_counted_is_there_before_it_is(change: Change) -> None:
    """A first request can be seen to come."""
    counters.cache_clear()
    for name in list(REGISTRY._collector_to_names):
        if getattr(name, "_name", "").startswith("sauce_"):
            REGISTRY.unregister(name)
    counters()
    known = {name.split()[1] for name in told() if "requests_total" in name}
    assert known >= {"asked", "mandatory", "nothing"}
