# SPDX-License-Identifier: Apache-2.0
"""What the options that several commands share become."""

import pytest

from vllm_sauce.activations.shards import Role
from vllm_sauce.errors import ConfigError
from vllm_sauce.options import ROLE_NAMES, engine_arguments, parse_pairs
from vllm_sauce.scale.cluster import Resources, actors_wanted


def test_pairs_are_read():
    assert parse_pairs(["vision=a/b@c=d"], "SITE=SAE") == {"vision": "a/b@c=d"}
    for bad, words in ((["vision"], "wanted SITE=SAE"), (["a=b", "a=c"], "twice")):
        with pytest.raises(ConfigError, match=words):
            parse_pairs(bad, "SITE=SAE")


def test_engine_arguments_are_json_or_text():
    assert engine_arguments(
        ["dtype=float32", "--max-model-len=256", "enforce_eager=true", 'x={"a": 1}']
    ) == {
        "dtype": "float32",
        "max_model_len": 256,
        "enforce_eager": True,
        "x": {"a": 1},
    }
    for bad, words in ((["seed"], "KEY=VALUE"), (["a=1", "a=2"], "a is given twice")):
        with pytest.raises(ConfigError, match=words):
            engine_arguments(bad)


def test_one_engine_without_a_cluster_is_this_process():
    assert actors_wanted(None) is None
    assert actors_wanted(Resources()) is None
    for given in (Resources(address="auto"), Resources(actors=2, cpus_per_actor=1.0)):
        assert actors_wanted(given) == given


@pytest.mark.parametrize(
    "share", [Resources(gpus_per_actor=1.0), Resources(cpus_per_actor=2.0)]
)
def test_a_share_of_no_actor_is_refused(share):
    with pytest.raises(ConfigError, match="give --actors or --ray"):
        actors_wanted(share)


def test_no_actor_at_all_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        Resources(actors=0)


def test_roles_are_those_of_the_shards():
    assert tuple(role.name.lower() for role in Role) == ROLE_NAMES
