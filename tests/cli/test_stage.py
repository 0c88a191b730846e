# SPDX-License-Identifier: Apache-2.0
"""A stage of ``sauce learn`` in a process of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vllm_sauce.cli.learn import run_apart
from vllm_sauce.inspection.settings import InspectRequest


def test_a_stage_is_given_its_dataclass_and_says_why_it_failed(tmp_path, capfd):
    out = tmp_path / "none" / "report.html"
    request = InspectRequest(bundle="b", model=Path("m"), pictures=Path("p"), out=out)
    assert run_apart("inspect", request) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"sauce inspect: cannot write {out}: ")
    assert len(error.splitlines()) == 1


RUN = """
import sys
from pathlib import Path
from vllm_sauce.cli.learn import run_apart
from vllm_sauce.inspection.settings import InspectRequest
file = Path(sys.argv[1])
request = InspectRequest(bundle="b", model=file, concepts=file, out=Path("o"))
run_apart("inspect", request)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_with_the_process_that_ran_it(tmp_path, number):
    """What went on by itself would meet what the next run begins."""
    read = tmp_path / "concepts.yaml"
    os.mkfifo(read)
    with subprocess.Popen([sys.executable, "-c", RUN, str(read)], cwd=tmp_path) as run:
        end = read.open("wb", buffering=0)  # Waits for the stage to read it.
        run.send_signal(number)
        assert run.wait(30) == -number
    for _ in range(300):
        try:
            end.write(b"#")
        except BrokenPipeError:
            return  # Nobody is there to read.
        time.sleep(0.1)
    pytest.fail("the stage goes on by itself")
