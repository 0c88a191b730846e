# SPDX-License-Identifier: Apache-2.0
"""Times variants against each other: CUDA graphs on GPUs, rounds on CPUs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

Call = Callable[[], object]

SAMPLE_SECONDS = 2e-3
"""Short calls are timed together until a sample takes about this."""
MIN_ROUNDS, MAX_ROUNDS = 5, 200
GRAPH_PASSES = 2


class Seconds(NamedTuple):
    """Of one call: the median, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float

    @property
    def us(self) -> float:
        """The median in microseconds."""
        return 1e6 * self.median

    @property
    def spread(self) -> float:
        """Percentiles' distance in per cent of the median."""
        return 100 * (self.high - self.low) / self.median


def rotating(call: Callable[..., object], sets: Sequence[Sequence[Any]]) -> Call:
    """Return a call that takes other arguments each time, so that caches are cold."""
    arguments = itertools.cycle(sets)
    return lambda: call(*next(arguments))


def compare(
    variants: Mapping[str, Call], device: torch.device, seconds: float
) -> dict[str, Seconds]:
    """Time all variants in one run, so that noise hits them alike.

    ``seconds``: how long to measure a variant; calls that take longer are still
    repeated a few times.
    """
    if device.type == "cuda":
        samples = _graphs(variants, seconds)
    else:
        samples = _rounds(variants, seconds)
    return {name: _summary(times) for name, times in samples.items()}


def _summary(times: Sequence[float]) -> Seconds:
    low, median, high = np.percentile(times, (10, 50, 90)).tolist()
    return Seconds(median, low, high)


def _graphs(variants: Mapping[str, Call], seconds: float) -> dict[str, list[float]]:
    """Time calls replayed from CUDA graphs; returns a call's seconds by replay."""
    from triton.testing import do_bench_cudagraph  # type: ignore[import-untyped, unused-ignore]

    samples: dict[str, list[float]] = {name: [] for name in variants}
    for call in variants.values():
        call()  # compiles the kernels, which a capture may not
    # Graphs are captured on a stream of their own, which does not wait for this one.
    torch.cuda.synchronize()
    for _ in range(GRAPH_PASSES):
        for name, call in variants.items():
            found = do_bench_cudagraph(call, rep=1e3 * seconds, return_mode="all")
            samples[name] += [milliseconds / 1e3 for milliseconds in found]
    return samples


def _rounds(variants: Mapping[str, Call], seconds: float) -> dict[str, list[float]]:
    calls, round_seconds = {}, 0.0
    for name, call in variants.items():
        call()
        once = _timed(call, 1)
        calls[name] = max(1, int(SAMPLE_SECONDS / once))
        round_seconds += once * calls[name]
    wanted = int(seconds * len(variants) / round_seconds)
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(min(MAX_ROUNDS, max(MIN_ROUNDS, wanted))):
        for name, call in variants.items():
            samples[name].append(_timed(call, calls[name]) / calls[name])
    return samples


def _timed(call: Call, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return time.perf_counter() - start
