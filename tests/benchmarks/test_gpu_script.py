# SPDX-License-Identifier: Apache-2.0
"""``scripts/gpu``: its rehearsal, and the shape of a model that it writes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import llava_shape
from tests.places import ROOT


def gpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script with this Python."""
    return subprocess.run(
        [str(ROOT / "scripts" / "gpu"), *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_a_rehearsal_says_how_each_step_ended(tmp_path: Path) -> None:
    done = gpu("--rehearse", "--out", str(tmp_path), "races", "blocks")
    assert done.returncode == 0, done.stdout + done.stderr
    summary = (tmp_path / "summary.txt").read_text().splitlines()
    assert [line.split(" after")[0] for line in summary] == [
        "races: status 0",
        "blocks: status 0",
    ]
    assert "2 passed" in (tmp_path / "races.log").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["frobnicate"], "no such step: frobnicate"), (["--out"], "wants a folder")],
)
def test_what_it_cannot_do_is_refused(arguments: list[str], words: str) -> None:
    done = gpu(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_without_a_gpu_it_names_the_rehearsal(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = gpu("--out", str(tmp_path), "blocks")
    assert done.returncode == 2
    assert "--rehearse" in done.stderr


def test_the_shape_is_llavas(tmp_path: Path) -> None:
    """A picture becomes 576 tokens; the model counts 7.06 billion numbers."""
    from PIL import Image
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    llava_shape.write(tmp_path / "llava")
    config = AutoConfig.from_pretrained(tmp_path / "llava")
    processor = AutoProcessor.from_pretrained(tmp_path / "llava")
    prompt = "USER: <image>\nDescribe the picture. ASSISTANT:"
    read = processor(text=prompt, images=Image.new("RGB", (640, 480)))
    ids = torch.tensor(read["input_ids"])
    assert int((ids == config.image_token_index).sum()) == 576
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert 7.0e9 < numbers < 7.1e9
