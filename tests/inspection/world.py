# SPDX-License-Identifier: Apache-2.0
"""What the tests of a report look at."""

from __future__ import annotations

import torch

from vllm_sauce.data.schema import Questions
from vllm_sauce.inspection.activation_maps import ActivationMap
from vllm_sauce.inspection.questions import Wording

NAMES = ["clock", "cat", "tree", "tennis"]
OBJECT = Questions(name=["What object is in the picture?"])
WORDING = Wording({"objects": OBJECT})


def grid_of(found: ActivationMap) -> torch.Tensor:
    assert found.grid is not None
    return found.grid
