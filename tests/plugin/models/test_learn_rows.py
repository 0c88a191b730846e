# SPDX-License-Identifier: Apache-2.0
"""``sauce learn`` on every architecture of the table: each stage knows each row."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from transformers import AutoConfig
from vllm.distributed import cleanup_dist_env_and_memory

from tests.places import ROOT, TINY_PICTURES
from tests.plugin.conftest import RUNNER
from tests.plugin.models.compared import widths, write_template
from tests.plugin.models.vision_models import VISION_MODELS, write_vision_model
from tests.smollm2 import smollm2
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.cli.app import run_request
from vllm_sauce.concepts import is_vision
from vllm_sauce.errors import LearnError
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.learn import learn
from vllm_sauce.learning.plan import planned
from vllm_sauce.learning.request import LearnRequest
from vllm_sauce.learning.selection.settings import SelectSettings
from vllm_sauce.learning.stages import stages
from vllm_sauce.learning.training.settings import SAETraining

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        RUNNER == "v2", reason="V2 on CPU needs a stand-in inside the engine's process"
    ),
]

CONCEPTS = ("dog", "cat")
ASKED = "What object is in the picture?"
EXISTS = "Is there {a concept} in the picture?"
QUICK: dict[str, Any] = {
    "k": (4,),
    "actions": ("scale -1",),
    "gates": (0.0,),
    "row_shares": (1.0,),
    "row_gates": (0.4,),
    "row_kinds": ("others",),
    "rankings": ("file",),
    "positives": 2,
    "negatives": 2,
    "watched": 1,
    "passes": 1,
    "finalists": 1,
    "prune": False,
    "answer_tokens": 1,
}
LARGE = {"aria"}
"""Its processor makes every picture 490 wide: a report of it takes a minute."""
BY_SLOPE = {"qwen2_vl", "llava_next", "idefics3", "lfm2_vl", "gemma3", "paligemma"}
"""Latents are ranked by attribution, which reads a picture's pieces."""
LAYER = {"mllama": 4}
"""Behind which sites are, where the first sees no pictures."""
TRAINED: dict[str, Any] = {"d_sae": 64, "training_tokens": 2048, "batch_tokens": 32}


def write_concepts(folder: Path, square: bool = False) -> Path:
    """Write two concepts of the shipped pictures, ten of each, made large enough."""
    lines = (TINY_PICTURES / "labels.jsonl").read_text().splitlines()
    labelled = [json.loads(line) for line in lines]
    mine = [one for one in labelled if set(CONCEPTS) & set(one["concepts"])]
    for one in mine:
        # vLLM's tower of Llama 4 takes no picture of a single tile on a CPU.
        shown = Image.open(TINY_PICTURES / one["file"])
        one["file"] = str(folder / one["file"])
        shown.resize((112, 112 if square else 84)).save(one["file"])
    pictures = folder / "mine.jsonl"
    pictures.write_text("".join(json.dumps(one) + "\n" for one in mine))
    told = {
        "version": 1,
        "minimum": 1,
        "pictures": {"jsonl": str(pictures), "image": "file", "concepts": "concepts"},
        "questions": {"objects": {"name": ASKED, "exists": EXISTS}},
        "concepts": {
            name: {"domain": "objects", "prompts": [ASKED]} for name in CONCEPTS
        },
    }
    concepts = folder / "concepts.yaml"
    concepts.write_text(yaml.safe_dump(told))
    return concepts


@pytest.fixture
def made(request: pytest.FixtureRequest, tmp_path: Path, model_dir: Path) -> Path:
    name = request.param
    # transformers reads this one's words as bytes, whatever its tokenizer.json says.
    words = smollm2() if name == "qwen3_5" else model_dir
    model = write_vision_model(tmp_path / "model", name, words)
    write_template(model, VISION_MODELS[name].word)
    return model


def request_of(name: str, model: Path, tmp_path: Path, layer: int) -> LearnRequest:
    """Return what is learnt of a model at its vision sites and behind a layer."""
    told = VISION_MODELS[name]
    sites = (*filter(is_vision, widths(AutoConfig.from_pretrained(model))),)
    return LearnRequest(
        model=str(model),
        sites=(*sites, f"decoder.{layer}"),
        concepts=write_concepts(tmp_path, told.square),
        out=tmp_path / "bundle",
        latents=4,
        fidelity_samples=2,
        report=name not in LARGE,
        training=SAETraining(**TRAINED),
        selection=SelectSettings(
            score="attribution" if name in BY_SLOPE else "share",
            attribution_examples=2,
        ),
        calibration=CalibrationConfig(**QUICK),
        engine_args={
            "dtype": told.dtype,
            "max_model_len": 1024,
            "max_num_seqs": 4,
            "max_num_batched_tokens": 2048,
            "limit_mm_per_prompt": told.limits,
            "kv_cache_memory_bytes": 64 << 20,
            "compilation_config": {"mode": 0},
        },
    )


def cleared(command: str, request: Any) -> int:
    """Run a stage in this process, where an engine of another may have been left."""
    cleanup_dist_env_and_memory()
    return run_request(command, request)


@pytest.mark.parametrize(
    ("name", "made"), [(name, name) for name in VISION_MODELS], indirect=["made"]
)
def test_the_whole_path(name: str, made: Path, tmp_path: Path) -> None:
    """Planned, harvested, trained, fitted, selected, calibrated as served, and shown.

    A random model names nothing: what it forgets is not the point.
    """
    request = request_of(name, made, tmp_path, LAYER.get(name, 1))
    staged = [stage.name for stage in stages(request)]
    steps = [name for name in staged if name != "inspect"]
    assert [*planned(request, None).columns[0].cells] == [*steps, "all"]
    learn(request, cleared)
    bundle = Bundle.load(request.out)
    assert bundle.fingerprint == fingerprint_model(made)
    assert set(bundle.sites) <= set(request.sites)
    assert set(bundle.catalogue) == set(CONCEPTS)
    for site in request.sites:
        selected = json.loads((request.folder / f"selection-{site}.json").read_text())
        assert set(selected["concepts"]) == set(CONCEPTS)
    assert (request.folder / "report.html").exists() == request.report


@pytest.mark.parametrize("made", ["mllama"], indirect=True)
def test_a_layer_that_sees_no_picture_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first that attends to it: with the concept and without are alike."""
    with pytest.raises(LearnError, match="fit decoder.1 ended with status 2"):
        learn(request_of("mllama", made, tmp_path, 1), cleared)
    said = " ".join(capsys.readouterr().err.split())
    assert "activations at decoder.1 are the same with cat, dog and without" in said


@pytest.mark.parametrize("made", ["qwen3_vl"], indirect=True)
def test_a_site_of_a_deepstack_alone_is_refused(made: Path, tmp_path: Path) -> None:
    """The command: what the other layers hand on would go around the edit."""
    command = [sys.executable, "-m", "vllm_sauce.cli", "learn", "--model", str(made)]
    concepts = write_concepts(tmp_path)
    command += ["--concepts", str(concepts), "--out", str(tmp_path / "bundle")]
    part = subprocess.run(
        [*command, "--site", "vision"], cwd=ROOT, capture_output=True, text=True
    )
    assert part.returncode == 2
    assert "leaves out vision.1, vision.2" in " ".join(part.stderr.split())
