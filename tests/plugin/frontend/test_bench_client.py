# SPDX-License-Identifier: Apache-2.0
"""The benchmark's client asks to forget."""

from __future__ import annotations

import argparse

import pytest

from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin.frontend import bench_client


def test_the_benchmark_client_asks_to_forget() -> None:
    """``vllm bench serve --sauce-forget`` puts it where the server reads it."""
    args = argparse.Namespace(
        plugin=[["sauce"]], sauce_forget=["dog"], extra_body={"top_k": 1}
    )
    assert bench_client.merged_extra_body(args) == {
        "top_k": 1,
        "vllm_xargs": {"sauce_forget": ["dog"], "sauce_strength": 1.0},
    }
    args.plugin = None
    with pytest.raises(ConfigError, match="--plugin sauce"):
        bench_client.merged_extra_body(args)


def test_the_benchmark_client_takes_lists_too() -> None:
    parser = argparse.ArgumentParser()
    bench_client._add_cli_args(lambda p: p, parser)
    args = parser.parse_args(
        ["--sauce-forget", "dog", "red", "--plugin", "sauce", "--sauce-forget=cat"]
    )
    args.extra_body = None
    assert bench_client.merged_extra_body(args) == {
        "vllm_xargs": {"sauce_forget": ["dog", "red", "cat"], "sauce_strength": 1.0}
    }
