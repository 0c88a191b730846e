# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of a training: whole or not there, and only for the same training.

``OUT.checkpoint/step-00000200/`` holds what SAELens saves (``sae_weights.safetensors``,
``trainer_state.pt``, ...) and ``run.json``: the settings, and what is trained on.
"""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vllm_sauce.errors import TrainingError
from vllm_sauce.files import new_folder
from vllm_sauce.learning.training.sae_lens_training import TrainingRun

RUN_FILE = "run.json"
_DAMAGE = (
    OSError,
    RuntimeError,
    ValueError,
    KeyError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The checkpoints of one training; the newest is kept."""

    folder: Path
    identity: dict[str, Any]
    """Settings and data, as JSON has them: a checkpoint of another is refused."""

    def newest(self) -> Path | None:
        """Return the newest whole checkpoint."""
        return max(self.folder.glob("step-*"), default=None)

    def save(self, run: TrainingRun) -> None:
        """Write a checkpoint, then remove the older ones.

        Raises: TrainingError, for example if the disk is full; the older ones stay
        """
        target = self.folder / f"step-{run.steps_done:08d}"
        try:
            with new_folder(target) as fresh:
                run.save(fresh)
                (fresh / RUN_FILE).write_text(json.dumps(self.identity, indent=1))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise TrainingError(
                f"cannot write the checkpoint {target}: {error}"
            ) from error
        for path in self.folder.glob("step-*"):
            if path != target:
                shutil.rmtree(path, ignore_errors=True)

    def resume(self, run: TrainingRun) -> None:
        """Load the newest checkpoint into a run, if there is one.

        Raises: TrainingError if it is damaged or of another training
        """
        newest = self.newest()
        if newest is None:
            return
        try:
            theirs = json.loads((newest / RUN_FILE).read_text())
            self._check(newest, theirs)
            run.load(newest)
        except _DAMAGE as error:
            raise TrainingError(
                f"{newest} is damaged ({error}); remove {self.folder} to begin anew"
            ) from error

    def remove(self) -> None:
        """Remove all checkpoints: the training is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check(self, path: Path, theirs: dict[str, Any]) -> None:
        ours = json.loads(json.dumps(self.identity))
        for name in sorted({*ours, *theirs}):
            mine, other = ours.get(name), theirs.get(name)
            if mine != other:
                raise TrainingError(
                    f"{path} is of a training with {name} {other!r}, not {mine!r}; "
                    "resume with the same settings and data, or remove "
                    f"{self.folder} to begin anew"
                )
