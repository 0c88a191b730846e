# SPDX-License-Identifier: Apache-2.0
import pytest
from hypothesis import given
from hypothesis import strategies as st

import vllm_sauce
from vllm_sauce.errors import (
    InvalidRequestError,
    InvalidStrengthError,
    RequestError,
)
from vllm_sauce.unlearning import ForgetRequest, parse_request

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
OURS = st.sampled_from(
    ["sauce", "sauce_forget", "sauce_strength", "sauce_profile", "Sauce", "saucer"]
)
FIELDS = st.sampled_from(["forget", "strength", "profile", "x"])


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
