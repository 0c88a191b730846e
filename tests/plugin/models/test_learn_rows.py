# SPDX-License-Identifier: Apache-2.0
"""``sauce learn`` on a model that hands on several layers of its tower."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.places import ROOT, TINY_PICTURES
from tests.plugin.conftest import RUNNER
from tests.plugin.models.compared import write_template
from tests.plugin.models.vision_models import VISION_MODELS, write_vision_model
from vllm_sauce.bundle import Bundle

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        RUNNER == "v2", reason="V2 on CPU needs a stand-in inside the engine's process"
    ),
]

SITES = ("vision", "vision.1", "vision.2")
QUICK = {
    "edits": "rows",
    "max-tokens": 1,
    "positives": 2,
    "negatives": 2,
    "watched": 1,
    "passes": 1,
    "row-share": 1,
    "row-gate": 0.4,
    "row-kind": "others",
    "asked-tokens": 1,
    "finalists": 1,
}
ENGINE = {"dtype": "float32", "max_model_len": 512}


def write_concepts(folder: Path) -> Path:
    asked = "What object is in the picture?"
    concepts = folder / "concepts.yaml"
    told = {
        "version": 1,
        "minimum": 1,
        "pictures": {
            "jsonl": str(TINY_PICTURES / "labels.jsonl"),
            "image": "file",
            "concepts": "concepts",
        },
        "questions": {
            "objects": {"name": asked, "exists": "Is there {a concept} in the picture?"}
        },
        "concepts": {
            name: {"domain": "objects", "prompts": [asked]} for name in ("dog", "cat")
        },
    }
    concepts.write_text(yaml.safe_dump(told))
    return concepts


def test_the_whole_path_on_a_deepstack(tmp_path: Path, model_dir: Path) -> None:
    """Harvested, fitted, selected, calibrated as served, and shown.

    A random model names nothing: what it forgets is not the point.
    """
    told = VISION_MODELS["qwen3_vl"]
    model = write_vision_model(tmp_path / "model", "qwen3_vl", model_dir)
    write_template(model, told.word)
    out = tmp_path / "bundle"
    command = [sys.executable, "-m", "vllm_sauce.cli", "learn", "--model", str(model)]
    command += ["--concepts", str(write_concepts(tmp_path)), "--out", str(out)]
    command += [f"--{name}={value}" for name, value in QUICK.items()]
    for name, value in {**ENGINE, "limit_mm_per_prompt": told.limits}.items():
        command += ["--engine-arg", f"{name}={json.dumps(value)}"]
    command += ["--site", "vision"]
    part = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert part.returncode == 2
    assert "leaves out vision.1, vision.2" in " ".join(part.stderr.split())
    for site in SITES[1:]:
        command += ["--site", site]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 3), done.stderr[-2000:]
    bundle = Bundle.load(out)
    assert set(bundle.sites) <= set(SITES)
    assert set(bundle.catalogue) == {"cat", "dog"}
    assert (tmp_path / "bundle.learn" / "report.html").exists()
