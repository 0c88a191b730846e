# SPDX-License-Identifier: Apache-2.0
"""Marks and wordings, by hand; test_inspection.py asks a model."""

import pytest
import torch

from vllm_sauce.evaluation.quiz import Wording, mark


def test_marks_by_hand():
    logits = torch.log(torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.7, 0.2]]]))
    probability, right = mark(
        logits, [(0, 0), (0, 0), (0, 1)], [[[0], [1]], [[1, 2]], [[2]]]
    )
    assert probability.tolist() == pytest.approx([0.35, 0.5, 0.2])
    assert right.tolist() == [True, False, False]


def test_wording_of_a_command_line():
    wording = Wording.of_options(None, ["What?", "objects=Which object?"])
    assert wording.naming("objects") == "Which object?"
    assert wording.naming("colours") == "What?"
    assert Wording.of_options("See {a concept}?", []).naming("colours") is None
    assert (
        Wording.of_options("See {a concept}?", []).default.asks("owl") == "See an owl?"
    )
