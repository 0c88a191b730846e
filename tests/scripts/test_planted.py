# SPDX-License-Identifier: Apache-2.0
"""The bugs that are planted to see tests fail can be planted."""

import importlib.util

from tests.places import ROOT


def test_every_line_that_is_broken_stands_in_the_code():
    spec = importlib.util.spec_from_file_location(
        "planted_served", ROOT / "scripts" / "planted_served.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for file, right, wrong, what, _ in module.SERVED:
        assert right in (ROOT / "vllm_sauce" / file).read_text("utf-8"), (file, what)
        assert right != wrong
