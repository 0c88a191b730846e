# SPDX-License-Identifier: Apache-2.0
"""A stage of ``sauce learn`` in a process of its own."""

from pathlib import Path

from vllm_sauce.cli.learn import run_apart
from vllm_sauce.inspection.settings import InspectRequest


def test_a_stage_is_given_its_dataclass_and_says_why_it_failed(tmp_path, capfd):
    out = tmp_path / "none" / "report.html"
    request = InspectRequest(bundle="b", model=Path("m"), pictures=Path("p"), out=out)
    assert run_apart("inspect", request) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"sauce inspect: cannot write {out}: ")
    assert len(error.splitlines()) == 1
