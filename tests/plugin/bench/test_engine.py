# SPDX-License-Identifier: Apache-2.0
"""Offline benchmarks: each request gets its mask, or there is no figure."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin.bench import engine
from vllm_sauce.plugin.bench.engine import Turns
from vllm_sauce.plugin.bench.masks import Wish
from vllm_sauce.plugin.frontend.admission import Admission, _admit


def process_by(admission: Admission, pictures: int = 0) -> Callable[..., Any]:
    """Return what stands for vLLM's ``process_inputs``, with admission in it."""

    def process(self: Any, request_id: str, prompt: Any, params: Any) -> Any:
        admitted, promise = _admit(admission, params)
        features = [
            SimpleNamespace(identifier="p", modality="image", data=())
            for _ in range(pictures)
        ]
        request = SimpleNamespace(
            sampling_params=admitted, cache_salt=None, mm_features=features
        )
        admission.identify(request, promise.mask)
        return request

    return process


def ask(turns: Turns, process: Callable[..., Any]) -> list[str]:
    """Send a request; returns the concepts that admission read."""
    from vllm import SamplingParams

    params = SamplingParams(extra_args={"kept": 1})
    request = turns.process_inputs(process, None, "0", "a", params)
    assert params.extra_args == {"kept": 1}
    extra = request.sampling_params.extra_args
    assert extra["kept"] == 1
    return [name for name, _ in extra["sauce"]["mask"]["concepts"]]


def test_masks_come_in_turn(admission: Admission) -> None:
    turns = Turns((("read",), ("both", "seen")), admission.bundle.catalogue)
    process = process_by(admission)
    asked = [ask(turns, process) for _ in range(3)]
    assert asked == [["read"], ["both", "seen"], ["read"]]
    assert (turns.num_requests, len(turns.mask_ids)) == (3, 2)


def test_a_mask_that_changes_nothing_ends_the_run(admission: Admission) -> None:
    turns = Turns((("seen",),), admission.bundle.catalogue)
    assert ask(turns, process_by(admission, pictures=1)) == ["seen"]
    with pytest.raises(ConfigError, match="seen would be forgotten in pictures only"):
        ask(turns, process_by(admission))
    # A mask is there all the same where another concept is mandatory.
    config = replace(admission.config, forget=("read",))
    with pytest.raises(ConfigError, match="seen would be forgotten in pictures only"):
        ask(turns, process_by(replace(admission, config=config)))


def command_line(bundle_dir: Path, **given: Any) -> argparse.Namespace:
    """Return arguments as they are once flags and bundle have been read."""
    return argparse.Namespace(
        **{
            "additional_config": {"sauce": {"bundle": str(bundle_dir)}},
            "sauce_bench_forget": Wish(("read",)),
            "seed": None,
            **given,
        }
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"additional_config": {}}, "without --plugin sauce"),
        ({"backend": "hf"}, "got hf"),
        ({"use_beam_search": True}, "--use-beam-search"),
        ({"sauce_bench_forget": Wish(num_masks=3)}, "at most 2 masks"),
    ],
)
def test_what_cannot_be_measured_is_refused_first(
    bundle_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    given: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.setattr("vllm_sauce.plugin.compat.hook", pytest.fail)
    with pytest.raises(SystemExit, match=f"error: .*{says}"):
        engine._main(pytest.fail, command_line(bundle_dir, **given))


def test_a_run_that_asked_nothing_is_an_error(
    bundle_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked = []
    monkeypatch.setattr("vllm_sauce.plugin.compat.hook", lambda *a: hooked.append(a[1]))
    with pytest.raises(SystemExit, match="no request"):
        engine._main(lambda args: "figures", command_line(bundle_dir))
    assert hooked == ["InputProcessor.process_inputs"]


def test_without_the_flag_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_sauce.plugin.compat.hook", pytest.fail)
    args = argparse.Namespace(sauce_bench_forget=None)
    assert engine._main(lambda args: "figures", args) == "figures"
