# SPDX-License-Identifier: Apache-2.0
"""``sauce calibrate`` around the search: what is found is there, whatever is drawn."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cli.sauce import sauce
from vllm_sauce.concepts import Catalogue
from vllm_sauce.learning.calibration import run as calibration_run
from vllm_sauce.learning.calibration.config import CalibrateRequest


def without_jinja(request: CalibrateRequest, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sys.modules, "jinja2", None)


def with_a_folder_there(request: CalibrateRequest, patch: pytest.MonkeyPatch) -> None:
    (request.folder / "frontier.html").mkdir()


def with_damaged_trials(request: CalibrateRequest, patch: pytest.MonkeyPatch) -> None:
    (request.folder / "concept-0.json").write_text("{}")


@pytest.mark.parametrize(
    "broken", [without_jinja, with_a_folder_there, with_damaged_trials]
)
def test_a_drawing_that_fails_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Any
) -> None:
    """It was a traceback after hours of work, where the library was not there."""

    def calibrate_bundle(request: CalibrateRequest, *told: object) -> SimpleNamespace:
        request.folder.mkdir()
        request.out.mkdir()
        broken(request, monkeypatch)
        return SimpleNamespace(catalogue=Catalogue())

    monkeypatch.setattr(calibration_run, "calibrate_bundle", calibrate_bundle)
    out = tmp_path / "bundle"
    done = sauce(
        *("calibrate", "--model", "m", "--sae", "vision=s", "--selection", "x"),
        *("--concepts", "c.yaml", "--out", out),
    )
    assert done.exit_code == 0, done.stderr
    assert f"bundle: {out}" in done.stdout
    (warning,) = (line for line in done.stderr.splitlines() if line.strip())
    assert warning.startswith("warning: the frontier of each concept is not drawn: ")
