# SPDX-License-Identifier: Apache-2.0
"""How a command line words its questions; test_inspection.py asks a model."""

from vllm_sauce.inspection.questions import Wording


def test_wording_of_a_command_line():
    wording = Wording.of_options(None, ["What?", "objects=Which object?"])
    assert wording.naming("objects") == "Which object?"
    assert wording.naming("colours") == "What?"
    assert Wording.of_options("See {a concept}?", []).naming("colours") is None
    assert (
        Wording.of_options("See {a concept}?", []).default.asks("owl") == "See an owl?"
    )
