# SPDX-License-Identifier: Apache-2.0
"""What an API process counts, beside vLLM's own figures at ``/metrics``."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

from vllm_sauce.errors import RequestError
from vllm_sauce.plugin.frontend.promises import Promise

if TYPE_CHECKING:
    from prometheus_client import Counter


ASKED, MANDATORY, NOTHING = REASONS = ("asked", "mandatory", "nothing")


class Counters(NamedTuple):
    """Counters of what reaches the engine: of each prompt, of each of a beam's steps.

    Sums over API processes, as vLLM's are.
    """

    requests: Counter
    concepts: Counter
    refused: Counter


@functools.cache
def counters() -> Counters:
    """Register the counters, once in a process.

    Not when this is imported: vLLM says first where processes share what they count.
    """
    from prometheus_client import Counter

    found = Counters(
        requests=Counter(
            "sauce_requests",
            "Requests let in, by why they forget: asked, mandatory or nothing.",
            ["forgets"],
        ),
        concepts=Counter(
            "sauce_concept_requests",
            "Requests let in that ask to forget a concept.",
            ["concept"],
        ),
        refused=Counter(
            "sauce_refused", "Requests refused by vllm-sauce, by its error.", ["error"]
        ),
    )
    for reason in REASONS:
        found.requests.labels(reason)  # what is there at 0 can be seen to grow
    return found


def count_admitted(promise: Promise) -> None:
    """Count a request that was let in, and each concept that it asked to forget.

    Not what is mandatory: it is in every request, and who may read the counters need
    not know it.
    """
    found, asked = counters(), promise.kept_of_asked()
    for name in asked:
        found.concepts.labels(name).inc()
    reason = ASKED if asked else NOTHING if promise.mask is None else MANDATORY
    found.requests.labels(reason).inc()


def count_refused(error: RequestError) -> None:
    """Count a request that was refused."""
    counters().refused.labels(type(error).__name__).inc()
