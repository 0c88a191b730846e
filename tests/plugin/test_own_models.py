# SPDX-License-Identifier: Apache-2.0
"""When a model of the plugin's own is brought, and what it needs."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from vllm_sauce.errors import UnsupportedVLLMError
from vllm_sauce.plugin import compat, own_models

SAUCE = {"additional_config": {"sauce": {"bundle": "b"}}}


def asked(model: str, **told: Any) -> Any:
    return SimpleNamespace(model=model, revision=None, hf_overrides={}, **told)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was brought in this test."""
    found: list[str] = []
    monkeypatch.setattr(own_models, "_register", lambda: found.append("mllama"))
    return found


def mllama(folder: Path) -> Path:
    """Write as much of a checkpoint as says what it is."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"architectures": [own_models.MLLAMA]})
    )
    return folder


def made(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Stands for vLLM: a config that has kept the overrides it was given."""
    config = SimpleNamespace(max_source_positions=64)
    return SimpleNamespace(
        hf_config=config, max_model_len=8, hf_overrides=self.hf_overrides
    )


@pytest.mark.parametrize("told", [SAUCE, {"additional_config": {"sauce_harvest": {}}}])
def test_it_is_brought_where_it_is_asked_for(
    tmp_path: Path, registered: list[str], told: dict[str, Any]
) -> None:
    args = asked(str(mllama(tmp_path / "m")), max_num_batched_tokens=None, **told)
    config = own_models._create_model_config(made, args)
    assert registered == ["mllama"]
    assert config.hf_overrides == args.hf_overrides == {}
    assert args.max_num_batched_tokens >= 8192


def test_it_is_brought_nowhere_else(tmp_path: Path, registered: list[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("[")
    for args in (
        asked(str(mllama(tmp_path / "m")), additional_config={}),
        asked(str(other), **SAUCE),
        asked(str(broken), **SAUCE),
        asked(str(tmp_path / "missing"), **SAUCE),
    ):
        own_models._create_model_config(made, args)
    assert registered == []


def test_a_name_on_the_hub_is_looked_up(
    tmp_path: Path, registered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its weights are here: vLLM asks for its class first."""
    folder = mllama(tmp_path / "m")

    def download(name: str, file: str, revision: str | None) -> str:
        if name != "meta-llama/Llama-3.2-11B-Vision-Instruct":
            raise OSError("no such model")
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(compat, "local_model_dir", lambda model, revision: None)
    for name in ("nobody/nothing", "meta-llama/Llama-3.2-11B-Vision-Instruct"):
        args = asked(name, max_num_batched_tokens=None, **SAUCE)
        own_models._create_model_config(made, args)
    assert registered == ["mllama"]


def test_an_older_vllm_is_refused(
    tmp_path: Path, registered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "vllm_version", lambda: "0.31.2")
    with pytest.raises(UnsupportedVLLMError, match="needs vLLM 0.32 or later"):
        own_models._create_model_config(
            made, asked(str(mllama(tmp_path / "m")), **SAUCE)
        )
    assert registered == []
