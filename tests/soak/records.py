# SPDX-License-Identifier: Apache-2.0
"""What has been run, a line of JSON each, so that a soak that stops goes on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.places import ROOT
from tests.plugin.support import MODEL
from tests.soak.universe import digest
from vllm_sauce.bundle import Bundle

STATE = ROOT / ".cache" / "soak"


def universe_id(bundle: Path) -> str:
    """Name what answers depend on: pictures, requests, model, bundle."""
    taken = hashlib.sha256((MODEL / "model.safetensors").read_bytes())
    taken.update(Bundle.load(bundle, weights=False).digest.encode())
    taken.update(digest().encode())
    return taken.hexdigest()[:16]


def answers_file(runner: str, bundle: Path) -> Path:
    """Return where a runner's cold answers are kept."""
    return STATE / f"answers-{runner}-{universe_id(bundle)}.jsonl"


def code_id() -> str:
    """Name the code under test, the soak's own included."""
    taken = hashlib.sha256()
    for folder in ("vllm_sauce", "kernels", "tests/soak"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            taken.update(file.relative_to(ROOT).as_posix().encode() + b"\0")
            taken.update(file.read_bytes())
    return taken.hexdigest()[:16]


class Records:
    """The lines of one file that are about one code; others are left alone."""

    def __init__(self, path: Path, code: str) -> None:
        self.path = path
        self.code = code
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = [row for row in _read(path) if row["code"] == code]

    def add(self, row: dict[str, Any]) -> None:
        """Keep what was run, at once."""
        row = {"code": self.code, **row}
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(row))


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    # A run that was killed may have cut its last line short.
    return [json.loads(line) for line in lines if line.endswith("}")]
