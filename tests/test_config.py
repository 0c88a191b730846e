# SPDX-License-Identifier: Apache-2.0
import pytest

import vllm_sauce
from vllm_sauce.config import SauceConfig


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
