# SPDX-License-Identifier: Apache-2.0
"""``sauce learn`` of a real language model: two concepts of docs/learn-text.md, cut."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from smollm2 import prompts
from tests.smollm2 import smollm2
from vllm_sauce.bundle import Bundle

SAUCE = Path(sys.executable).with_name("sauce")


@pytest.fixture
def concepts(tmp_path, monkeypatch):
    """Ten topics of each in three wordings."""
    chosen = {name: prompts.TOPICS[name][:10] for name in ("France", "dog")}
    monkeypatch.setattr(prompts, "TOPICS", chosen)
    monkeypatch.setattr(prompts, "OTHERS", prompts.OTHERS[:12])
    monkeypatch.setattr(prompts, "FRAMES", prompts.FRAMES[:3])
    prompts.write(tmp_path)
    text = (tmp_path / "concepts.yaml").read_text()
    (tmp_path / "concepts.yaml").write_text("minimum: 3\n" + text)
    return tmp_path / "concepts.yaml"


@pytest.mark.engine
def test_two_concepts_of_a_language_model_are_forgotten(concepts, tmp_path):
    """With rows alone, in one command; scores are of prompts about other topics."""
    out = tmp_path / "bundle"
    command = [
        *(SAUCE, "learn", "--model", smollm2(), "--concepts", concepts, "--out", out),
        *("--site", "decoder.12", "--edits", "rows", "--no-report"),
        *("--max-tokens", "16", "--asked-tokens", "12", "--no-prune"),
        *("--row-share", "2", "--row-gate", "0.5", "--row-kind", "words"),
        *("--positives", "6", "--negatives", "6", "--watched", "0"),
        *("--passes", "1", "--finalists", "1"),
        *("--engine-arg", "dtype=float32", "--engine-arg", "max-model-len=256"),
    ]
    done = subprocess.run(
        list(map(str, command)),
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 3), done.stderr[-3000:]
    bundle = Bundle.load(out)
    bundle.check_model(smollm2())
    assert bundle.catalogue.names() == ("France", "dog")
    sae = bundle.sites["decoder.12"].weights
    for concept in bundle.catalogue.values():
        edit = concept.edits["decoder.12"]
        (row,) = (sae.rows[latent] for latent in edit.latents)
        assert row.concept == concept.name
        # Position 0 is every prompt's sink.
        assert "sink" not in edit.tokens
        scores = {name: score or 0.0 for name, score in concept.scores.items()}
        assert scores["base_UAg"] <= 0.5 and scores["base_CRA"] == 1
        # Of six answers each; docs/learn-text.md has figures of a hundred.
        assert scores["UAg"] > 0.5 and scores["CRA"] > 0.5
