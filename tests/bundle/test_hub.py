# SPDX-License-Identifier: Apache-2.0
"""Bundles to the hub and back, through the real client and a stand-in server.

Each step is a process of its own: the client reads its address at import.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.bundle.stand_in_hub import Hub, serving
from tests.cli.sauce import Done
from tests.copies import sauce_in_a_copy
from tests.places import ROOT
from vllm_sauce.bundle import Bundle
from vllm_sauce.bundle.hub import HubName, is_hub_name, pull
from vllm_sauce.errors import ConfigError

BUNDLE, MODEL = ROOT / "examples/tiny/bundle", ROOT / "examples/tiny/model"
Sauce = Callable[..., Done]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving() as running:
        files = {file.name: file.read_bytes() for file in BUNDLE.iterdir()}
        files["README.md"] = b"more than a bundle"
        running.commit("org/shipped", files)
        broken = dict(files)
        name = next(name for name in files if name.endswith(".safetensors"))
        broken[name] = files[name][:-1] + b"?"
        running.commit("org/broken", broken)
        yield running


@pytest.fixture
def sauce(hub: Hub, tmp_path: Path) -> Sauce:
    """Run ``sauce`` against the stand-in, with a cache of the test's own."""

    def run(*args: str | Path, **env: str) -> Done:
        settings = {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": "hf_test",
            "HF_HUB_DISABLE_XET": "1",
            "VLLM_SAUCE_CACHE": str(tmp_path / "cache"),
            "COLUMNS": "200",
        }
        return sauce_in_a_copy(*args, env=settings | env)

    return run


def test_pull_fetches_the_bundle_alone_and_checks_its_model(
    sauce: Sauce, tmp_path: Path
) -> None:
    done = sauce("pull", "org/shipped", "--out", tmp_path / "got", "--model", MODEL)
    assert done.exit_code == 0, done.stderr
    assert sorted(f.name for f in (tmp_path / "got").iterdir()) == sorted(
        f.name for f in BUNDLE.iterdir() if f.name != "README.md"
    )
    assert Bundle.load(tmp_path / "got").digest == Bundle.load(BUNDLE).digest
    again = sauce("pull", "org/shipped", "--out", tmp_path / "got")
    assert again.exit_code == 2 and "exists" in again.stderr


def test_a_commit_is_fetched_once_and_then_needs_no_network(
    sauce: Sauce, hub: Hub
) -> None:
    commit = list(hub.repos["org/shipped"])[-1]
    first = sauce("pull", f"org/shipped@{commit}")
    assert first.exit_code == 0, first.stderr
    folder = Path(first.stdout.strip())
    assert folder.name == commit and Bundle.load(folder, weights=False)
    offline = sauce("pull", f"org/shipped@{commit}", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.exit_code == 0 and offline.stdout == first.stdout
    branch = sauce("pull", "org/shipped", HF_ENDPOINT="http://127.0.0.1:9")
    assert branch.exit_code == 2 and "no bundle org/shipped" in branch.stderr


def test_a_damaged_bundle_is_refused_and_not_kept(sauce: Sauce, tmp_path: Path) -> None:
    done = sauce("pull", "org/broken")
    assert done.exit_code == 2 and "SHA-256" in done.stderr
    kept = tmp_path / "cache" / "bundles" / "org--broken"
    assert not list(kept.iterdir())


def test_a_bundle_of_another_model_is_refused(sauce: Sauce, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(MODEL, other)
    config = other / "config.json"
    config.write_text(config.read_text().replace("Llava", "Lava"))
    done = sauce("pull", "org/shipped", "--model", other)
    assert done.exit_code == 2 and "belongs to another model" in done.stderr


def test_what_is_pushed_comes_back(sauce: Sauce, hub: Hub, tmp_path: Path) -> None:
    done = sauce("push", BUNDLE, "team/new", "--private")
    assert done.exit_code == 0, done.stderr
    commit = list(hub.repos["team/new"])[-1]
    assert commit in done.stdout
    back = sauce("pull", f"team/new@{commit}", "--out", tmp_path / "back")
    assert back.exit_code == 0, back.stderr
    same = sauce("diff", BUNDLE, tmp_path / "back")
    assert same.exit_code == 0 and "no difference" in same.stdout


def test_a_damaged_folder_is_not_pushed(sauce: Sauce, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(BUNDLE, folder)
    (folder / "bundle.json").write_text("{}")
    done = sauce("push", folder, "team/damaged")
    assert done.exit_code == 2 and "team/damaged" not in hub.repos


def test_an_unknown_repository_is_named(sauce: Sauce) -> None:
    done = sauce("pull", "org/nobody@v1")
    assert done.exit_code == 2
    assert "no bundle org/nobody at v1" in done.stderr


@pytest.mark.parametrize("variable", ["HOME", "VLLM_SAUCE_CACHE"])
def test_a_cache_that_cannot_be_written_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("VLLM_SAUCE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot write to .*give --out, or set VLLM_"):
        pull(HubName("org/name", "0" * 40))


def test_names_and_paths_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("org/name", "org/name@v1.2", "a-b/c.d@refs/pr/1"):
        assert is_hub_name(name)
    for path in ("name", "./org/name", "/org/name", "a/b/c", "org/name@", "~/x"):
        assert not is_hub_name(path)
    (tmp_path / "org/name").mkdir(parents=True)
    assert not is_hub_name("org/name")
    assert HubName.parse("org/other@v1") == HubName("org/other", "v1")
    with pytest.raises(ConfigError, match="org/name@revision"):
        HubName.parse("nothing")
