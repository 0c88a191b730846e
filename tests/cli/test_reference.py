# SPDX-License-Identifier: Apache-2.0
"""docs/reference.md is what the dataclasses say, and its learn.yaml is the defaults."""

import re
import subprocess
import sys

from tests.cli.test_config_file import parsed
from tests.places import ROOT
from vllm_sauce.learning.request import LearnRequest
from vllm_sauce.scale.cluster import Resources

PAGE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")


def test_the_page_is_up_to_date():
    done = subprocess.run(
        [sys.executable, "scripts/reference.py"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == PAGE, "run: python scripts/reference.py > docs/reference.md"


def test_the_file_on_the_page_holds_the_defaults(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    wanted = {"model": "m", "site": "vision", "concepts": "c.yaml", "out": "b"}
    for key, value in wanted.items():
        text = text.replace(f"{key}: # wanted", f"{key}: {value}", 1)
    assert "# wanted" not in text
    given = LearnRequest(
        model="m",
        sites=("vision",),
        concepts=tmp_path / "c.yaml",
        out=tmp_path / "b",
        resources=Resources(),
    )
    assert parsed(tmp_path, text) == given
