# SPDX-License-Identifier: Apache-2.0
"""From a harvest's folder to an SAE's: train, measure, write; resumable.

OUT/cfg.json, sae_weights.safetensors   as SAELens saves; what is known of the SAE is
                                        under "metadata" in cfg.json
OUT/figures.json                        how good it is
OUT.checkpoint/                         while it is trained
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from vllm_sauce.activations.reader import ActivationReader
from vllm_sauce.activations.row_choice import (
    RowChoice,
    alike,
    held_out_samples,
    parse_roles,
)
from vllm_sauce.activations.shards import HarvestFile, read_index
from vllm_sauce.activations.statistics import ActivationStatistics
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.bundle import fingerprint_model
from vllm_sauce.concepts import is_vision
from vllm_sauce.errors import ConfigError, TrainingError
from vllm_sauce.files import new_folder
from vllm_sauce.learning.training.checkpoints import Checkpoints
from vllm_sauce.learning.training.fidelity import (
    measurable_samples,
    measure_fidelity,
)
from vllm_sauce.learning.training.sae_lens_training import StepFigures, TrainingRun
from vllm_sauce.learning.training.settings import HarvestTraining
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.sae import SAEWeights
from vllm_sauce.sae.quality import sae_quality

FIGURES_FILE = "figures.json"
STATISTICS_ROWS = 16_384
REPORT_STEPS = 50
NO_SAMPLES = (
    "no held-out sample whose picture could be found; name folders with --pictures"
)

Report = Callable[[int, StepFigures], None]
"""Told the steps done and the last batch's figures."""


def train_on_harvest(
    settings: HarvestTraining, report: Report = lambda step, figures: None
) -> dict[str, Any]:
    """Train an SAE on a harvest and write it to a new folder; return its figures.json.

    A killed training goes on from its last checkpoint with ``resume``, and ends in the
    same weights as one that was not killed.

    Raises: ActivationsError, ConfigError, TrainingError
    """
    session = _Session.open(settings)
    before = session.run.steps_done
    seconds = session.train(report)
    session.run.fold()
    weights = session.run.weights()
    rows = (session.run.steps_done - before) * settings.training.batch_tokens
    figures = {
        "site": settings.site,
        "architecture": settings.training.architecture,
        "d_model": weights.d_model,
        "d_sae": weights.d_sae,
        **session.quality(weights),
        "dead_latents": session.run.dead_latents,
        "training_tokens": session.run.steps_done * settings.training.batch_tokens,
        "tokens_per_s": round(rows / seconds, 1) if rows else None,
        **session.fidelity(weights),
    }
    session.write(figures)
    return figures


@dataclass(frozen=True, slots=True)
class _Session:
    """One training: its data, its state, its checkpoints."""

    settings: HarvestTraining
    store: ActivationStore
    samples: list[dict[str, Any]]
    held_out: Tensor
    """Numbers of the samples that are not trained on."""
    choice: RowChoice
    reader: ActivationReader
    statistics: ActivationStatistics
    run: TrainingRun
    checkpoints: Checkpoints

    @classmethod
    def open(cls, settings: HarvestTraining) -> _Session:
        """Open the harvest, check what can be checked, and load a checkpoint."""
        if settings.out.exists():
            raise ConfigError(f"{settings.out} is already there; choose another folder")
        store = ActivationStore.open(
            settings.harvest, settings.site, verify=settings.verify
        )
        training = settings.training.for_width(store.d_model)
        settings = replace(settings, training=training)
        samples = store.samples()
        seed = settings.training.seed
        held_out = held_out_samples(samples, settings.held_out, seed)
        choice = RowChoice(
            roles=parse_roles(settings.roles),
            skip=0 if settings.keep_first else alike(store),
            held_out=held_out,
        )
        reader = ActivationReader(
            store,
            settings.training.batch_tokens,
            seed=seed,
            choice=choice,
            buffer_mib=settings.buffer_mib,
        )
        statistics = ActivationStatistics.of(reader.sample(STATISTICS_ROWS))
        run = TrainingRun(settings.training, statistics)
        checkpoints = Checkpoints(
            settings.out.with_name(f"{settings.out.name}.checkpoint"),
            _identity(settings, store.harvest),
        )
        if settings.resume:
            checkpoints.resume(run)
        elif checkpoints.newest() is not None:
            raise ConfigError(
                f"{checkpoints.folder} holds an unfinished training; resume it "
                "(--resume) or remove it"
            )
        data = (settings, store, samples, held_out, choice, reader, statistics)
        return cls(*data, run, checkpoints)

    def train(self, report: Report) -> float:
        """Learn from all batches that are left; return the seconds it took."""
        begun = time.perf_counter()
        with closing(self.reader.batches(self.run.steps_done)) as batches:
            while not self.run.finished:
                self.run.step(next(batches))
                done = self.run.steps_done
                save = done % self.settings.checkpoint_steps == 0 or self.run.finished
                if save or done % REPORT_STEPS == 0:
                    report(done, self.run.figures())
                if save:
                    self.checkpoints.save(self.run)
        return time.perf_counter() - begun

    def quality(self, weights: SAEWeights) -> dict[str, Any]:
        """Return explained variance, L0 and dead latents on rows not trained on."""
        reader = self.reader
        if len(self.held_out):
            seed = self.settings.training.seed
            kept = replace(self.choice, of_held_out=True)
            reader = ActivationReader(self.store, 1, seed=seed, choice=kept)
        which = "held-out" if len(self.held_out) else "training"
        rows = reader.sample(STATISTICS_ROWS)
        sae = weights.to(self.settings.training.device)
        return {
            **sae_quality(sae, rows).to_json(),
            "measured_rows": len(rows),
            "measured_on": f"{which} samples",
        }

    def fidelity(self, weights: SAEWeights) -> dict[str, Any]:
        """Return what the SAE costs its model, or why that was not measured."""
        settings = self.settings.fidelity
        numbers = self.held_out.tolist() or range(len(self.samples))
        # What could not be shown to the model then cannot be now.
        taken = {n for entry in read_index(self.store.folder) for n in entry.samples}
        held_out = torch.tensor([n for n in numbers if n in taken])
        samples = measurable_samples(
            self.samples, held_out, settings.pictures, settings.samples
        )
        if is_vision(self.settings.site):
            samples = [sample for sample in samples if sample.picture is not None]
        if not samples:
            reason = NO_SAMPLES if settings.samples else "not asked for"
            return {"fidelity": None, "fidelity_missing": reason}
        name = settings.model or self.store.harvest.model
        if Path(name).is_dir():
            check_model(name, self.store.harvest)
        mean = self.statistics.mean
        measured = measure_fidelity(
            LoadedModel.load(name, self.settings.training.device),
            self.settings.site,
            weights,
            mean if settings.ablation == "mean" else torch.zeros_like(mean),
            samples,
            choice=self.choice,
            max_tokens=settings.answer_tokens,
        )
        return {"fidelity": {**measured.to_json(), "ablation": settings.ablation}}

    def write(self, figures: dict[str, Any]) -> None:
        """Put the SAE's folder in its place; the checkpoints go then."""
        out = self.settings.out
        harvest = self.store.harvest
        metadata = {
            "model_name": harvest.model,
            "hook_name": self.settings.site,
            "vllm_sauce": {
                "site": self.settings.site,
                "fingerprint": harvest.fingerprint.model_dump(mode="json"),
                "training": self.checkpoints.identity,
                "figures": figures,
            },
        }
        try:
            with new_folder(out) as fresh:
                self.run.write(fresh, metadata)
                (fresh / FIGURES_FILE).write_text(json.dumps(figures, indent=1) + "\n")
                for path in fresh.iterdir():
                    # safetensors makes files private; a server may be another user.
                    path.chmod(0o644)
        except (OSError, SafetensorError) as error:
            raise TrainingError(
                f"cannot write {out}: {error}; the training is kept in "
                f"{self.checkpoints.folder}, --resume writes it again"
            ) from error
        self.checkpoints.remove()


def check_model(folder: str, harvest: HarvestFile) -> None:
    """Refuse a model that the harvest is not of.

    Raises: ConfigError
    """
    weights = harvest.fingerprint.weights_sha256 is not None
    found = fingerprint_model(folder, weights=weights)
    if differences := harvest.fingerprint.differences(found):
        raise ConfigError(
            f"the harvest is of another model than {folder}: "
            f"{'; '.join(differences)}; name the harvested one with --model"
        )


def _identity(settings: HarvestTraining, harvest: HarvestFile) -> dict[str, Any]:
    """Return all that the weights depend on."""
    from sae_lens import __version__

    entries = read_index(settings.harvest)
    shards = hashlib.sha256("".join(entry.sha256 for entry in entries).encode())
    return {
        **settings.training.to_json(),
        "site": settings.site,
        "roles": sorted(role.name.lower() for role in parse_roles(settings.roles)),
        "keep_first": settings.keep_first,
        "held_out": settings.held_out,
        "buffer_mib": settings.buffer_mib,
        "samples_sha256": harvest.samples_sha256,
        "shards_sha256": shards.hexdigest(),
        "sae_lens": __version__,
    }
