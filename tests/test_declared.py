# SPDX-License-Identifier: Apache-2.0
"""What the package imports is declared, in the base or in the extra that is named."""

import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.places import ROOT
from tests.test_imports import files, imported
from vllm_sauce.cli.failures import EXTRAS

# Modules whose distribution has another name.
DISTRIBUTIONS = {"resvg_py": "resvg-py", "sae_lens": "sae-lens", "yaml": "pyyaml"}
BROUGHT_BY_VLLM = {
    *("httpx", "numpy", "openai", "PIL", "prometheus_client", "starlette", "torch"),
    *("transformers", "triton", "vllm"),
}


def declared():
    """Distributions by extra; "" is the base."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    lists = {"": project["dependencies"], **project["optional-dependencies"]}
    return {
        extra: {Requirement(line).name.casefold() for line in lines}
        for extra, lines in lists.items()
    }


def modules():
    """Third-party modules by name, with the files that import them."""
    found: dict[str, list[str]] = {}
    for file in files("vllm_sauce", "kernels"):
        for name in imported(file):
            module = name.split(".")[0]
            if module not in sys.stdlib_module_names and "vllm_sauce" not in module:
                found.setdefault(module, []).append(file.relative_to(ROOT).as_posix())
    return found


MODULES = modules()


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_import_is_declared(module):
    lists = declared()
    distribution = DISTRIBUTIONS.get(module, module.replace("_", "-"))
    if distribution.casefold() in lists[""]:
        return
    assert module in EXTRAS, f"{module} is not declared: {MODULES[module]}"
    named = set(re.findall(r"vllm-sauce\[(\w+)\]", EXTRAS[module]))
    assert named and named <= lists.keys()
    if module in BROUGHT_BY_VLLM:
        assert all(any("vllm" in d for d in lists[extra]) for extra in named)
    else:
        assert all(distribution.casefold() in lists[extra] for extra in named)


def test_no_extra_is_named_for_nothing():
    # The trainer's pictures are drawn by the examples alone.
    assert EXTRAS.keys() - MODULES.keys() <= {"resvg_py"}


def test_the_extras_that_the_docs_name_exist():
    extras = declared().keys()
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    named = [
        (path.name, extra)
        for path in texts
        for group in re.findall(r"vllm-sauce\[([\w,]+)\]", path.read_text("utf-8"))
        for extra in group.split(",")
    ]
    assert named
    assert [(file, extra) for file, extra in named if extra not in extras] == []
