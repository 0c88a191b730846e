# SPDX-License-Identifier: Apache-2.0
"""Whose time a hook's is."""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks import share


def test_vllms_own_time_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the hook calls it twice, or it raises."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)

    def work(seconds: float) -> None:
        nonlocal now
        now += seconds

    def original(fails: bool) -> str:
        work(100.0)
        if fails:
            raise KeyError
        return "answer"

    def around(original: Any, fails: bool) -> Any:
        work(1.0)
        original(False)
        answer = original(fails)
        work(2.0)
        return answer

    clock = share.Clock()
    timed = clock.around("hook", around)
    assert timed(original, False) == "answer"
    assert clock.seconds == {"hook": 3.0} and clock.calls == {"hook": 1}
    with pytest.raises(KeyError):
        timed(original, True)
    assert clock.seconds == {"hook": 4.0} and clock.calls == {"hook": 2}
    clock.clear()
    assert not clock.seconds and not clock.calls
