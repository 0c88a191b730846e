# SPDX-License-Identifier: Apache-2.0
import pickle
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vllm_sauce
from vllm_sauce import client
from vllm_sauce.client import ForgetRequest, has_sauce_keys, means_us, parse_request
from vllm_sauce.errors import (
    InvalidRequestError,
    InvalidStrengthError,
    RequestError,
)
from vllm_sauce.unlearning.mask import marked

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
OURS = st.sampled_from(
    ["sauce", "sauce_forget", "sauce_strength", "sauce_profile", "Sauce", "saucer"]
)
FIELDS = st.sampled_from(["forget", "strength", "profile", "x"])


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


@pytest.fixture
def vllm_here(monkeypatch):
    """A process in which vLLM is imported, and has not loaded its plugins yet."""
    plugins = types.SimpleNamespace(plugins_loaded=False)
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.plugins", plugins)
    monkeypatch.setattr(client, "plugin_registered", False)
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    return plugins


@pytest.mark.parametrize("named", ["", "other", "other,sauces"])
def test_a_process_that_leaves_the_plugin_out_is_told(vllm_here, monkeypatch, named):
    assert vllm_sauce.forget("dog")
    monkeypatch.setenv("VLLM_PLUGINS", named)
    with pytest.raises(vllm_sauce.ConfigError, match=f"VLLM_PLUGINS={named} "):
        vllm_sauce.forget("dog")
    assert vllm_sauce.forget_body("dog"), "its server runs elsewhere"
    monkeypatch.setenv("VLLM_PLUGINS", f"sauce,{named}")
    assert vllm_sauce.forget("dog")
    monkeypatch.delitem(sys.modules, "vllm")
    monkeypatch.setenv("VLLM_PLUGINS", named)
    assert vllm_sauce.forget("dog"), "no engine can be here"


def test_plugins_loaded_without_ours_are_told(vllm_here, monkeypatch):
    vllm_here.plugins_loaded = True
    with pytest.raises(vllm_sauce.ConfigError, match="but not vllm-sauce"):
        vllm_sauce.forget("dog")
    assert vllm_sauce.forget_body("dog"), "its server runs elsewhere"
    monkeypatch.setattr(client, "plugin_registered", True)
    assert vllm_sauce.forget("dog")


@pytest.mark.parametrize(
    "key",
    [
        "sauce",
        "sauce_forget",
        " sauce_forget",
        "sauce_forget\u00a0",
        "Sauce-Forget",
        "SAUCE_STRENGTH",
        "sauceForget",
        "sauce_forgot",
        "vllm_sauce_forget",
        "x-sauce-forget",
        "\uff53\uff41\uff55\uff43\uff45_forget",
        "sau\u00adce_forget",
        "\u200bsauce\u200b_forget",
        "sa_uce_forget",
        "forget",
        " Forget ",
        "FORGET:",
    ],
)
def test_what_looks_like_ours_is_ours(key: str) -> None:
    """Any spelling a person or a client library may make of our keys."""
    assert means_us(key)
    assert has_sauce_keys({"other": 1, key: 2})
    assert marked({"other": 1, key: 2}, {"mask": None}) == {
        "other": 1,
        "sauce": {"mask": None},
    }


@pytest.mark.parametrize("key", ["source", "strength", "profile", "forge", "", 7, None])
def test_other_keys_are_not(key: object) -> None:
    """Keys of vLLM and of other plugins pass."""
    assert not means_us(key)


@given(st.dictionaries(OURS | st.text(), JSON | st.dictionaries(FIELDS, JSON)))
def test_arbitrary_json_gives_a_request_or_a_request_error(extra_args):
    try:
        asked = parse_request(extra_args)
    except RequestError:
        return
    ours = any(key.strip().casefold().startswith("sauce") for key in extra_args)
    assert (asked is not None) == ours


@pytest.mark.parametrize("extra_args", [None, {}, {"kv_transfer_params": {}}])
def test_requests_that_do_not_mention_us(extra_args):
    assert parse_request(extra_args) is None


@pytest.mark.parametrize(
    "extra_args",
    [
        {"sauce": {"forget": ["dog", "red"], "strength": 2}},
        {"sauce_forget": ["dog", "red"], "sauce_strength": 2.0},
        vllm_sauce.forget("dog", "red", strength=2),
        vllm_sauce.forget_body("dog", "red", strength=2)["vllm_xargs"],
    ],
)
def test_both_forms_mean_the_same(extra_args):
    want = ForgetRequest(forget=("dog", "red"), strength=2.0)
    assert parse_request(extra_args) == want


def test_a_bare_name_is_a_list_of_one():
    assert parse_request({"sauce_forget": "dog"}) == ForgetRequest(forget=("dog",))


@pytest.mark.parametrize(
    "extra_args",
    [
        {"sauce": ["dog"]},
        {"sauce": None},
        {"sauce": {}},
        {"sauce": {"forget": ["dog"], "forgot": 1}},
        {"sauce": {"forget": ["dog", 1]}},
        {"sauce": {"forget": {"dog": 1}}},
        {"sauce": {"forget": ["dog"]}, "sauce_forget": ["dog"]},
        {"sauce_forgot": ["dog"]},
        {"SAUCE": {"forget": ["dog"]}},
        {"sauce_strength": 1.0},
        {"sauce_forget": ["dog"], "sauce_profile": "kids"},
    ],
)
def test_malformed_requests_are_refused(extra_args):
    with pytest.raises(InvalidRequestError):
        parse_request(extra_args)


@pytest.mark.parametrize(
    "strength",
    [True, "1", None, [], -0.1, 10.1, float("nan"), float("inf"), 10**400, -(10**400)],
)
def test_bad_strengths_are_refused(strength):
    with pytest.raises(InvalidStrengthError):
        parse_request({"sauce_forget": ["dog"], "sauce_strength": strength})
