# SPDX-License-Identifier: Apache-2.0
"""What an API process counts, beside vLLM's own figures at ``/metrics``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from vllm_sauce.errors import RequestError
from vllm_sauce.plugin.frontend.promises import Promise

if TYPE_CHECKING:
    from prometheus_client import Counter


class Counters(NamedTuple):
    """Counters of requests; each is a sum over API processes, as vLLM's are."""

    requests: Counter
    concepts: Counter
    refused: Counter


@functools.cache
def counters() -> Counters:
    """Register the counters, once in a process.

    Not when this is imported: vLLM says first where processes share what they count.
    """
    from prometheus_client import Counter

    return Counters(
        requests=Counter(
            "sauce_requests",
            "Requests let in, by why they forget: asked, mandatory or nothing.",
            ["forgets"],
        ),
        concepts=Counter(
            "sauce_concept_requests",
            "Requests let in that forget a concept.",
            ["concept"],
        ),
        refused=Counter(
            "sauce_refused", "Requests refused by vllm-sauce, by its error.", ["error"]
        ),
    )


def count_admitted(promise: Promise) -> None:
    """Count a request that was let in, and each concept of its mask."""
    found = counters()
    mask = promise.mask
    reason = "nothing"
    if mask is not None:
        reason = "asked" if promise.kept_of_asked() else "mandatory"
        for name in mask.names():
            found.concepts.labels(name).inc()
    found.requests.labels(reason).inc()


def count_refused(error: RequestError) -> None:
    """Count a request that was refused."""
    counters().refused.labels(type(error).__name__).inc()
