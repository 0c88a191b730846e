# SPDX-License-Identifier: Apache-2.0
"""docs/models.md is of the table as it is, and of what was measured."""

import importlib.util
import json

from tests.places import ROOT
from vllm_sauce.models.architectures import LAYERS, VISION_ROWS


def made():
    spec = importlib.util.spec_from_file_location("models", ROOT / "scripts/models.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_made_of_the_table():
    module = made()
    measured = json.loads(module.MEASURED.read_text(encoding="utf-8"))
    assert module.PAGE.read_text(encoding="utf-8") == module.page(measured), (
        "run python scripts/models.py"
    )


def test_every_row_was_measured():
    """Served eagerly on the first runner, at least: a row is no promise."""
    measured = json.loads(made().MEASURED.read_text(encoding="utf-8"))
    lines = [
        x for x in measured["lines"] if (x["runner"], x["mode"]) == ("v1", "eager")
    ]
    assert {line["architecture"] for line in lines} >= set(VISION_ROWS)
    assert {layer for line in lines for layer in line["layers"]} == set(LAYERS)
    for line in lines:
        assert line["moved"] > 10 * line["difference"], line["model"]
