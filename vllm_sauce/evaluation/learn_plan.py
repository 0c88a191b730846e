# SPDX-License-Identifier: Apache-2.0
"""What ``sauce learn`` will take: forward passes, disk, memory, and time.

Counts come from the files. Times are floating-point operations over the matrix rate
that this machine was just measured at: what no run can beat, not a promise.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vllm_sauce.concepts import VISION
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.calibrate import CalibrationConfig
from vllm_sauce.evaluation.learn import LearnRequest

if TYPE_CHECKING:
    from rich.table import Table

PROMPT_TOKENS: Final = 24
"""Taken for the words and the template of one prompt."""
RANKINGS: Final = 6
"""The file's order and five scores."""
_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model's config.json says of its size."""

    d_text: int
    text_layers: int
    text_parameters: int
    """Of the language model's matrices, embeddings left out."""
    d_vision: int
    patches: int
    """Patches a picture; 0 without a tower."""
    vision_parameters: int
    dtype: str

    @classmethod
    def read(cls, model: str | Path) -> ModelSize:
        """Read a model folder's config.json; no weights are needed.

        Raises: ConfigError
        """
        path = Path(model) / "config.json"
        try:
            config = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        text = {**config, **(config.get("text_config") or {})}
        vision = config.get("vision_config") or {}
        patches = 0
        if vision.get("image_size") and vision.get("patch_size"):
            patches = (int(vision["image_size"]) // int(vision["patch_size"])) ** 2
        dtype = str(text.get("dtype") or text.get("torch_dtype") or "bfloat16")
        return cls(
            d_text=int(text.get("hidden_size", 4096)),
            text_layers=int(text.get("num_hidden_layers", 32)),
            text_parameters=_parameters(text, gated=True),
            d_vision=int(vision.get("hidden_size", 0)),
            patches=patches,
            vision_parameters=_parameters(vision, gated=False) if vision else 0,
            dtype=dtype if dtype in _BYTES else "bfloat16",
        )

    def width(self, site: str) -> int:
        """Return d_model of a site."""
        return self.d_vision if site == VISION else self.d_text


def _parameters(config: Mapping[str, Any], *, gated: bool) -> int:
    """Return the numbers in a transformer's matrices.

    A missing number is that of Llama 7B, LLaVA-1.5's config says no more.
    """
    d_model = int(config.get("hidden_size", 4096))
    heads = int(config.get("num_attention_heads", 32))
    kv_heads = int(config.get("num_key_value_heads", heads))
    hidden = int(config.get("intermediate_size", 11_008))
    attention = 2 * d_model * d_model + 2 * d_model * d_model * kv_heads // heads
    layers = int(config.get("num_hidden_layers", 32))
    return layers * (attention + (3 if gated else 2) * d_model * hidden)


@dataclass(frozen=True, slots=True)
class Line:
    """One stage of the plan."""

    stage: str
    passes: int
    """Forward passes of the model: prompts."""
    tokens: int
    """Rows that are read, written or learned from."""
    disk: int
    """Bytes that stay."""
    memory: int
    """Bytes the stage itself holds; the engine's own come on top."""
    operations: float
    """Floating-point operations."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How much there is to look at."""

    samples: int
    """Prompts of the selection split."""
    pictures: int
    """Distinct pictures among them."""
    concepts: int
    train_pictures: int = 0


def plan(request: LearnRequest, counts: Counts, size: ModelSize) -> list[Line]:
    """Return what each stage takes."""
    lines = [_harvest("harvest concepts", request.sites, counts, size)]
    trained_on = lines[0].tokens
    if request.trained and counts.train_pictures:
        more = Counts(counts.train_pictures, counts.train_pictures, 0)
        lines.append(_harvest("harvest pictures", request.trained, more, size))
        trained_on = lines[-1].tokens
    for site in request.trained:
        lines.append(_train(request, site, size, trained_on))
    for site in request.sites:
        d_sae = request.d_sae or 16 * size.width(site)
        rows = lines[0].tokens
        operations = 2.0 * rows * size.width(site) * d_sae
        memory = 2 * counts.concepts * d_sae * 36
        lines.append(Line(f"select {site}", 0, rows, 0, memory, operations))
    lines.append(_calibrate(request, counts, size))
    return lines


def _harvest(
    stage: str, sites: tuple[str, ...], counts: Counts, size: ModelSize
) -> Line:
    prompt = PROMPT_TOKENS + size.patches
    rows = {
        site: counts.pictures * size.patches
        if site == VISION
        else counts.samples * prompt
        for site in sites
    }
    # A row's sample, position and role take nine bytes.
    disk = sum(
        count * (size.width(site) * _BYTES[size.dtype] + 9)
        for site, count in rows.items()
    )
    operations = 2.0 * counts.samples * prompt * size.text_parameters
    operations += 2.0 * counts.pictures * size.patches * size.vision_parameters
    return Line(stage, counts.samples, max(rows.values()), disk, disk // 8, operations)


def _train(request: LearnRequest, site: str, size: ModelSize, rows: int) -> Line:
    d_model = size.width(site)
    d_sae = request.d_sae or 16 * d_model
    weights = 2 * d_model * d_sae * 4
    # Weights, their gradients, Adam's two moments, and a batch's latents three times.
    memory = 4 * weights + 3 * 1024 * d_sae * 4
    # Encode and decode, forward, and twice that backward.
    operations = 12.0 * request.tokens * d_model * d_sae
    return Line(f"train {site}", 0, request.tokens, weights, memory, operations)


def _calibrate(request: LearnRequest, counts: Counts, size: ModelSize) -> Line:
    """Two questions a picture with the concept, six others a picture, all told."""
    config = CalibrationConfig()
    questions = request.positives * 5 + request.negatives * 6
    sites = len(request.sites)
    starts = sites + (sites > 1)
    values = starts + RANKINGS + len(config.k) + len(config.gates) + len(config.actions)
    tried = starts + config.passes * values
    asked = tried * config.screen * questions + (config.finalists + 2) * questions
    passes = round(asked * counts.concepts)
    operations = 2.0 * passes * (PROMPT_TOKENS + size.patches) * size.text_parameters
    return Line("calibrate", passes, passes, 0, 0, operations)


def matrix_rate(device: str, seconds: float = 0.5) -> float:
    """Measure float32 (CPU) or bfloat16 (GPU) products; operations a second.

    Raises: ConfigError if the device is not there
    """
    import torch

    width = 4096 if device.startswith("cuda") else 1024
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    try:
        a = torch.randn(width, width, device=device, dtype=dtype)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"no device {device!r} here: {error}") from error

    def times(count: int) -> float:
        before = time.perf_counter()
        for _ in range(count):
            out = a @ a
        float(out[0, 0])
        return time.perf_counter() - before

    times(2)
    count = max(1, round(seconds / max(times(2) / 2, 1e-6)))
    return 2.0 * width**3 * count / times(count)


def as_table(lines: list[Line], rate: float | None) -> Table:
    """Return the plan for a terminal; ``rate`` in operations a second."""
    from rich.table import Table

    head = ("stage", "prompts", "rows", "disk", "memory", "at least")
    table = Table(*head, title="What sauce learn will take")
    for line in lines:
        spent = "-" if not rate else _duration(line.operations / rate)
        table.add_row(
            line.stage,
            f"{line.passes:,}" if line.passes else "-",
            f"{line.tokens:,}",
            _size(line.disk),
            _size(line.memory),
            spent,
        )
    total = sum(line.operations for line in lines)
    table.add_row(
        "all",
        f"{sum(line.passes for line in lines):,}",
        "",
        _size(sum(line.disk for line in lines)),
        "",
        "-" if not rate else _duration(total / rate),
    )
    return table


def _size(count: int) -> str:
    return "-" if not count else f"{count / 2**30:,.2f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"


def planned(request: LearnRequest) -> Table:
    """Count, measure this machine, and return the plan for a terminal.

    Raises: ConfigError, ActivationsError
    """
    counts = count(request)
    lines = plan(request, counts, ModelSize.read(request.model))
    return as_table(lines, matrix_rate(request.device))


def count(request: LearnRequest) -> Counts:
    """Count what the files lead to; each picture of the concepts is read once.

    Raises: ConfigError, ActivationsError
    """
    from vllm_sauce.training.concept_examples import ConceptFile
    from vllm_sauce.training.sample_sources import find_samples

    file = ConceptFile.read(request.concepts)
    samples = file.samples("selection")
    pictures = {s.picture.name for s in samples if s.picture is not None}
    more = 0
    if request.trained and request.train_pictures is not None:
        path = request.train_pictures
        found = (
            find_samples(table=path, image_column="image", prompt_column="prompt")
            if path.suffix == ".jsonl"
            else find_samples(pictures=path)
        )
        more = len(found)
    return Counts(len(samples), len(pictures), len(file.concepts), more)


def site_saes(given: Sequence[str]) -> dict[str, str]:
    """Parse SITE=SAE pairs.

    Raises: ConfigError
    """
    found: dict[str, str] = {}
    for pair in given:
        site, equals, source = pair.partition("=")
        if not equals or not source:
            raise ConfigError(f"wanted SITE=SAE, got {pair!r}")
        if site in found:
            raise ConfigError(f"{site} is given twice")
        found[site] = source
    return found
