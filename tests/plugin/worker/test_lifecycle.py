# SPDX-License-Identifier: Apache-2.0
"""Sleep, wake and reload where an engine has several ranks: all or none goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sauce.errors import BundleMismatchError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.worker import canary, lifecycle


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in order: votes, proofs."""
    noted: list[str] = []

    @contextmanager
    def together(*, stages: bool = False) -> Iterator[None]:
        assert stages
        try:
            yield
        except Exception as error:
            noted.append(f"voted {error}")
            raise
        noted.append("voted")

    runtime = SimpleNamespace(bundle=None, weights="a", proven=True, weights_lost=False)
    monkeypatch.setattr(compat, "together", together)
    monkeypatch.setattr(lifecycle, "runtime_of", lambda model: runtime)
    monkeypatch.setattr(lifecycle, "check_files", lambda *_: "a")
    monkeypatch.setattr(canary, "prove", lambda _: noted.append("proven"))
    return noted


def worker() -> Any:
    """Return what of a worker is looked at; it sleeps."""
    return SimpleNamespace(
        vllm_config=SimpleNamespace(additional_config={"sauce": {}}),
        model_runner=SimpleNamespace(model=None),
        _sauce_asleep={"weights", "kv_cache"},
    )


def fails(*_: Any) -> None:
    raise MemoryError("full")


@pytest.mark.parametrize("change", [lifecycle._wake_up, lifecycle._reload_weights])
def test_a_rank_that_fails_votes_before_it_raises(
    notes: list[str], change: Callable[..., Any]
) -> None:
    """The others go on into a proof, which is one of all ranks."""
    with pytest.raises(MemoryError):
        change(fails, worker())
    assert notes == ["voted full"]


def test_what_is_whole_again_is_proven(notes: list[str]) -> None:
    sleeper = worker()
    lifecycle._wake_up(lambda *_: None, sleeper, ["weights"])
    assert notes == ["voted"]
    lifecycle._wake_up(lambda *_: None, sleeper, ["kv_cache"])
    assert notes == ["voted", "voted", "proven"]


def test_other_weights_are_not_proven(
    notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the operator allows others than the bundle's, too."""
    monkeypatch.setattr(lifecycle, "check_files", lambda *_: "b")
    with pytest.raises(BundleMismatchError, match="not those that it was started"):
        lifecycle._reload_weights(lambda *_: None, worker())
    assert len(notes) == 1 and notes[0].startswith("voted the model's weights")
