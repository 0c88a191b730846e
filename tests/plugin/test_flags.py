# SPDX-License-Identifier: Apache-2.0
"""Flags, variables and ``additional_config`` say the same thing."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_sauce.errors import BundleCorruptError, BundleNotFoundError, ConfigError
from vllm_sauce.plugin import bench_client, flags, settings

SHIPPED = Path(__file__).parents[2] / "examples/tiny/bundle"


def parse(*argv: str) -> Any:
    """Parse a command line and build engine arguments from it, as vLLM does."""
    parser = flags._add_cli_args(lambda p: p, argparse.ArgumentParser())
    args = parser.parse_args(argv)
    return flags._from_cli_args(
        lambda cls, _: SimpleNamespace(additional_config={"kept": 1}), object, args
    )


def test_flags_become_additional_config() -> None:
    """Each flag has its setting; other settings stay."""
    got = parse(
        *("--plugin", "sauce", "--sauce-bundle", "b", "--sauce-forget", "dog"),
        *("--sauce-forget", "red", "--sauce-max-latents", "7"),
        *("--sauce-pool-dtype", "fp8", "--sauce-approximate", "relu"),
    ).additional_config
    assert got == {
        "kept": 1,
        "sauce": {
            "bundle": "b",
            "forget": ["dog", "red"],
            "max_latents": 7,
            "pool_dtype": "fp8",
            "approximate": "relu",
        },
    }


def test_without_the_flag_nothing_changes() -> None:
    """Installed but not asked for."""
    assert parse().additional_config == {"kept": 1}


def test_sauce_flags_need_the_plugin_flag() -> None:
    """Else a forgotten --plugin would serve unedited."""
    with pytest.raises(ConfigError, match="add --plugin sauce"):
        parse("--sauce-forget", "dog")


@pytest.mark.parametrize("value", ["soss", "sauce,soss", ",", ""])
def test_unknown_plugins_are_refused(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo in the plugin's name ends the start."""
    with pytest.raises(SystemExit):
        parse("--plugin", value)
    assert "known: sauce" in capsys.readouterr().err


def test_variables_are_read_and_checked() -> None:
    """VLLM_SAUCE_* say what the flags say; a misspelt one is an error."""
    assert settings.from_environment(
        {
            "VLLM_SAUCE_BUNDLE": "b",
            "VLLM_SAUCE_FORGET": "dog, red",
            "VLLM_SAUCE_MAX_LATENTS": "9",
            "VLLM_SAUCE_POOL_DTYPE": "fp8",
            "VLLM_SAUCE_CACHE": "folder",
            "VLLM_SAUCE_NATIVE": "0",
        }
    ) == {
        "bundle": "b",
        "forget": ["dog", "red"],
        "max_latents": 9,
        "pool_dtype": "fp8",
    }
    with pytest.raises(ConfigError, match="VLLM_SAUCE_FORGETS"):
        settings.from_environment({"VLLM_SAUCE_FORGETS": "dog"})
    with pytest.raises(ConfigError, match="whole number"):
        settings.from_environment({"VLLM_SAUCE_MAX_LATENTS": "many"})


def test_a_flag_wins_over_a_variable() -> None:
    """The nearer source counts."""
    args = SimpleNamespace(additional_config={"sauce": {"bundle": "flag"}})
    merged = settings.requested(
        args, {"VLLM_SAUCE_BUNDLE": "env", "VLLM_SAUCE_FORGET": "dog"}
    )
    assert merged == {"bundle": "flag", "forget": ["dog"]}
    assert settings.requested(SimpleNamespace(additional_config={}), {}) is None


def test_the_bundle_beside_the_weights_is_found(tmp_path: Path) -> None:
    """Without --sauce-bundle, the model folder's sauce/ is used, else an error."""
    with pytest.raises(BundleNotFoundError, match="--sauce-bundle"):
        settings.locate_bundle({}, tmp_path)
    (tmp_path / "sauce").mkdir()
    assert settings.locate_bundle({}, tmp_path) == str((tmp_path / "sauce").resolve())


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


def test_a_bundle_may_be_named_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit fetched before is found without a network, and read like any bundle."""
    commit = "0123456789abcdef" * 2 + "01234567"
    kept = tmp_path / "bundles" / "org--name" / commit
    shutil.copytree(SHIPPED, kept)
    monkeypatch.setenv("VLLM_SAUCE_CACHE", str(tmp_path))
    given = {"bundle": f"org/name@{commit}"}
    assert settings.locate_bundle(given, None) == str(kept)
    (kept / "bundle.json").write_text("{}")
    with pytest.raises(BundleCorruptError):
        settings.locate_bundle(given, None)
