# SPDX-License-Identifier: Apache-2.0
"""Training progress on disk, so that an interrupted run goes on where it was."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def save_progress(path: Path, parts: Mapping[str, Any], step: int) -> None:
    """Write the state of ``parts`` after ``step`` steps, atomically."""
    state: dict[str, Any] = {name: part.state_dict() for name, part in parts.items()}
    partial = path.with_suffix(".part")
    torch.save({"step": step, **state}, partial)
    os.replace(partial, path)


def load_progress(path: Path, parts: Mapping[str, Any]) -> int:
    """Restore ``parts`` and return the steps done; 0 when nothing was saved."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
