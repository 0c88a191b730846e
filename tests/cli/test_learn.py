# SPDX-License-Identifier: Apache-2.0
"""``sauce learn`` in one command: pictures in, a bundle that a server loads out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import TINY
from tiny.exam import balanced_pictures
from vllm_sauce.bundle import Bundle

SAUCE = Path(sys.executable).with_name("sauce")
DOMAINS = {
    "pig": "objects",
    "frog": "objects",
    "wood": "materials",
    "sand": "materials",
}


def write_world(folder):
    """Pictures with labels, of which four concepts are named."""
    rows = []
    for number, picture in enumerate(balanced_pictures("selection", 10)):
        picture.image.save(folder / f"{number}.png")
        row = {"file": f"{number}.png", "concepts": list(picture.concepts)}
        rows.append(json.dumps(row))
    (folder / "labels.jsonl").write_text("\n".join(rows))
    named = "\n".join(f"  {n}: {{domain: {d}}}" for n, d in DOMAINS.items())
    (folder / "concepts.yaml").write_text(
        "version: 1\nminimum: 1\n"
        "pictures: {jsonl: labels.jsonl, image: file, concepts: concepts}\n"
        "questions:\n"
        '  objects: {name: "What object is in the picture?",'
        ' exists: "Is there {a concept} in the picture?"}\n'
        '  materials: {name: "What material is the background?",'
        ' exists: "Is there {concept} in the picture?"}\n'
        f"concepts:\n{named}\n"
    )
    return folder / "concepts.yaml"


@pytest.mark.engine
def test_from_pictures_to_a_bundle(tmp_path):
    """One SAE is given, one is trained; run again, nothing is done twice."""
    concepts, out = write_world(tmp_path), tmp_path / "bundle"
    command = [
        *(SAUCE, "learn", "--model", TINY / "model", "--concepts", concepts),
        *("--site", "vision", "--site", "decoder.1", "--out", out),
        *("--sae", f"vision={TINY / 'latents'}", "--no-report"),
        *("--architecture", "standard", "--l1", "2.5", "--d-sae", "512"),
        *("--tokens", "60000", "--lr", "0.002", "--latents", "16"),
        *("--positives", "4", "--negatives", "4", "--watched", "1"),
        *("--passes", "1", "--finalists", "3", "--edit-k", "8", "--no-prune"),
        *("--action", "scale -1", "--action", "scale -4", "--row-gate", "0.5"),
        *("--engine-arg", "dtype=float32", "--engine-arg", "max-model-len=256"),
    ]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}

    def run():
        return subprocess.run(
            list(map(str, command)), env=environment, capture_output=True, text=True
        )

    done = run()
    assert done.returncode in (0, 3), done.stderr[-3000:]
    bundle = Bundle.load(out)
    # So few pictures may be too few for a concept; then it is said.
    weak = bundle.catalogue.weak()
    assert done.returncode == (3 if weak else 0)
    assert all(name in done.stderr.split("not forgotten:")[-1] for name in weak)
    bundle.check_model(TINY / "model")
    assert bundle.catalogue.names() == tuple(sorted(DOMAINS))
    for concept in bundle.catalogue.values():
        assert concept.domain == DOMAINS[concept.name]
        # Unedited, the model knows every one of them.
        assert (concept.scores["base_UAg"] or 0.0) < 0.5
    best = max(c.scores["HM"] or 0.0 for c in bundle.catalogue.values())
    assert best > 0.6
    before = sorted((p, p.stat().st_mtime_ns) for p in out.iterdir())
    again = run()
    assert again.returncode == done.returncode
    assert again.stderr.count("done before") == 7
    assert before == sorted((p, p.stat().st_mtime_ns) for p in out.iterdir())
