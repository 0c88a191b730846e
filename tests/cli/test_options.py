# SPDX-License-Identifier: Apache-2.0
"""What the subcommands' shared options become."""

import pytest

from vllm_sauce.cli.options import resources
from vllm_sauce.errors import ConfigError
from vllm_sauce.scale.cluster import Resources


def test_one_engine_without_a_cluster_is_this_process():
    assert resources(None, 1, None, None) is None
    assert resources("auto", 1, None, None) == Resources(address="auto")
    assert resources(None, 2, None, 1.0) == Resources(actors=2, cpus_per_actor=1.0)


@pytest.mark.parametrize("share", [(1.0, None), (None, 2.0)])
def test_a_share_of_no_actor_is_refused(share):
    with pytest.raises(ConfigError, match="give --actors or --ray"):
        resources(None, 1, *share)


def test_no_actor_at_all_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        resources(None, 0, None, None)
