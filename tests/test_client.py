# SPDX-License-Identifier: Apache-2.0
import pickle
import sys
import types

import pytest

import vllm_sauce
from vllm_sauce import client
from vllm_sauce.config import SauceConfig


def test_forms_of_a_request():
    assert vllm_sauce.forget("dog", "red") == {
        "sauce": {"forget": ["dog", "red"], "strength": 1.0}
    }
    assert vllm_sauce.forget_body("dog", strength=2) == {
        "vllm_xargs": {"sauce_forget": ["dog"], "sauce_strength": 2.0}
    }


@pytest.mark.parametrize("names", [(), (["dog", "red"],), (1,)])
def test_names_are_checked(names):
    with pytest.raises(vllm_sauce.InvalidRequestError):
        vllm_sauce.forget(*names)


@pytest.mark.parametrize("strength", [-1, 11, True, "1", float("nan")])
def test_strength_is_checked(strength):
    with pytest.raises(vllm_sauce.InvalidStrengthError):
        vllm_sauce.forget_body("dog", strength=strength)


def test_request_errors_are_value_errors_and_cross_processes():
    error = vllm_sauce.UnknownConceptError("Dog", ["dog", "cat"])
    assert isinstance(error, ValueError)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "unknown concept 'Dog': did you mean 'dog'?"


def test_a_huge_name_makes_a_short_message():
    error = vllm_sauce.UnknownConceptError("d" * 1_000_000, ["dog"])
    assert len(str(error)) < 300


def test_config_round_trip():
    config = SauceConfig(bundle="b", forget=("dog",), max_latents=7)
    assert SauceConfig.from_mapping(config.to_mapping()) == config


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"bundle": ""},
        {"bundle": 1},
        {"bundle": "b", "forgot": []},
        {"bundle": "b", "forget": "dog"},
        {"bundle": "b", "forget": [1]},
        {"bundle": "b", "max_latents": 0},
        {"bundle": "b", "max_latents": True},
        {"bundle": "b", "pool_dtype": "fp4"},
        {"bundle": "b", "approximate": "topk"},
        {"bundle": "b", "max_concepts": 1.5},
        {"bundle": "b", "require_decoder": 1},
    ],
)
def test_bad_configs_are_refused(data):
    with pytest.raises(vllm_sauce.ConfigError):
        SauceConfig.from_mapping(data)


@pytest.fixture
def vllm_here(monkeypatch):
    """A process in which vLLM is imported, and has not loaded its plugins yet."""
    plugins = types.SimpleNamespace(plugins_loaded=False)
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.plugins", plugins)
    monkeypatch.setattr(client, "plugin_registered", False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    return plugins


@pytest.mark.parametrize("ask", [vllm_sauce.forget, vllm_sauce.forget_body])
@pytest.mark.parametrize("named", ["", "other", "other,sauces"])
def test_a_process_that_leaves_the_plugin_out_is_told(
    vllm_here, monkeypatch, ask, named
):
    assert ask("dog")
    monkeypatch.setenv("VLLM_PLUGINS", named)
    with pytest.raises(vllm_sauce.ConfigError, match=f"VLLM_PLUGINS={named} "):
        ask("dog")
    monkeypatch.setenv("VLLM_PLUGINS", f"sauce,{named}")
    assert ask("dog")
    monkeypatch.delitem(sys.modules, "vllm")
    monkeypatch.setenv("VLLM_PLUGINS", named)
    assert ask("dog"), "a mere client"


@pytest.mark.parametrize("ask", [vllm_sauce.forget, vllm_sauce.forget_body])
def test_plugins_loaded_without_ours_are_told(vllm_here, monkeypatch, ask):
    vllm_here.plugins_loaded = True
    with pytest.raises(vllm_sauce.ConfigError, match="but not vllm-sauce"):
        ask("dog")
    monkeypatch.setattr(client, "plugin_registered", True)
    assert ask("dog")
