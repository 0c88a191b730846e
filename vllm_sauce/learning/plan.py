# SPDX-License-Identifier: Apache-2.0
"""What ``sauce learn`` will take: forward passes, disk, memory, and time.

Counts come from the files. Times are floating-point operations over the matrix rate
that this machine was just measured at: what no run can beat, not a promise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from rich.table import Table

from vllm_sauce.concepts import is_vision
from vllm_sauce.learning.calibration.coordinate_search import STEPS, most_settings
from vllm_sauce.learning.counts import Counts, count, pictures_alone
from vllm_sauce.learning.request import LearnRequest
from vllm_sauce.learning.selection.settings import ATTRIBUTION
from vllm_sauce.learning.training.settings import BUFFER_MIB
from vllm_sauce.models.architectures import VISION_ROWS, WHERE
from vllm_sauce.models.model_size import ModelSize, check_sites

PROMPT_TOKENS: Final = 24
"""Taken for the words and the template of a prompt that the model cannot count."""
ROWS: Final = 2
"""Kinds of rows that a concept has at most; twice as many in texts."""
RANKINGS: Final = 6
"""The file's order and five scores."""
PRUNINGS: Final = 4
"""Parts of a site's edit that are left out in turn."""
LATENT_COPIES: Final = 13
"""Matrices of a batch's latents that a step holds at most, forward and backward.

Peak resident memory of 12 steps, 16,384 latents of width 64 on 1,024 rows, less the
weights, gradients and moments: standard 8.1, jumprelu 10.4, topk 11.2, gated 11.3,
batchtopk 12.2, matryoshka 13.4 times rows x latents x 4 bytes.
"""
_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2, "half": 2, "float": 4}


@dataclass(frozen=True, slots=True)
class Line:
    """One stage of the plan."""

    stage: str
    passes: int
    """Forward passes of the model, at most: prompts."""
    tokens: int
    """Rows that are read, written or learned from."""
    disk: int
    """Bytes that stay."""
    memory: int
    """Bytes that the stage itself holds; a vLLM engine's own come on top."""
    operations: float
    """Floating-point operations in products with weights, at least."""


def plan(request: LearnRequest, counts: Counts, size: ModelSize) -> list[Line]:
    """Return what each stage takes; importing and the report are left out."""
    lines = [_harvest("harvest concepts", request, request.sites, counts, size)]
    rows = {site: _rows(site, counts, size) for site in request.sites}
    if request.trained and (more := counts.training) is not None:
        name = f"harvest training {'pictures' if more.shown else 'texts'}"
        lines.append(_harvest(name, request, request.trained, more, size))
    for site in request.trained:
        lines.append(_train(request, site, size))
    if request.edits != "latents":
        lines += [_fit(site, rows[site], counts, size) for site in request.sites]
    for site in request.sites:
        d_model = size.width(site)
        d_sae = _latents(request, d_model)
        # Every latent's sums with and without each concept; a batch; the SAE itself.
        memory = 2 * counts.concepts * d_sae * 36 + 2**27 + 2 * d_model * d_sae * 4
        operations = 2.0 * rows[site] * d_model * d_sae
        lines.append(Line(f"select {site}", 0, rows[site], 0, memory, operations))
    lines.append(_calibrate(request, counts, size))
    return lines


def _fit(site: str, rows: int, counts: Counts, size: ModelSize) -> Line:
    d_model = size.width(site)
    # Two halves' squares and sums of each concept, in float64; and a batch.
    memory = 16 * d_model * (d_model + 2 * counts.concepts) + 2**27
    return Line(f"fit {site}", 0, rows, 0, memory, 2.0 * rows * d_model**2)


def _rows(site: str, counts: Counts, size: ModelSize) -> int:
    """Return a harvest's rows at a site; a picture passes the tower once."""
    if is_vision(site):
        return counts.pictures * size.picture.patches
    return _prompt_rows(counts, size)


def _prompt_rows(counts: Counts, size: ModelSize) -> int:
    words = counts.words or counts.samples * PROMPT_TOKENS
    return words + counts.written + counts.shown * size.picture.prompt_tokens


def _prompt_tokens(counts: Counts) -> float:
    """Return the tokens of the words of one prompt."""
    return counts.words / counts.samples if counts.words else PROMPT_TOKENS


def _harvest(
    stage: str,
    request: LearnRequest,
    sites: tuple[str, ...],
    counts: Counts,
    size: ModelSize,
) -> Line:
    disk = memory = 0
    told = request.harvest
    stored = told.dtype or request.engine_args.get("dtype", "auto")
    # On "auto" vLLM runs float32 weights in a type of two bytes.
    number = _BYTES.get(stored, 2)
    for site in sites:
        rows = _rows(site, counts, size)
        per_sample = math.ceil(_prompt_tokens(counts)) + told.max_tokens
        per_sample += size.picture.prompt_tokens
        if is_vision(site):
            per_sample = size.picture.patches
        # A row's sample, position and role take nine bytes.
        row = size.width(site) * number + 9
        disk += rows * row
        # Samples under way; a shard's parts, joined, and as the bytes of a file.
        held = told.in_flight * per_sample + 3 * (told.shard_tokens + per_sample)
        memory += min(held, 3 * rows) * row
    operations = counts.pictures * size.picture_operations
    operations += 2.0 * _prompt_rows(counts, size) * size.text_parameters
    most = max(_rows(site, counts, size) for site in sites)
    return Line(stage, counts.samples, most, disk, memory, operations)


def _latents(request: LearnRequest, d_model: int) -> int:
    """Return an SAE's latents, as if it were trained here."""
    if request.edits == "rows":
        return 1
    return request.training.d_sae or request.training.expansion * d_model


def _train(request: LearnRequest, site: str, size: ModelSize) -> Line:
    d_model = size.width(site)
    d_sae = _latents(request, d_model)
    tokens = request.training.training_tokens
    weights = 2 * d_model * d_sae * 4
    # Weights, their gradients and Adam's two moments, all in float32.
    state = 4 * weights
    step = LATENT_COPIES * request.training.batch_tokens * d_sae * 4
    # Afterwards the model answers with the SAE in its place, beside what was trained.
    measured = weights + size.parameters * _BYTES[size.dtype]
    memory = BUFFER_MIB * 2**20 + state + max(step, measured)
    # Encode and decode, forward, and twice that backward.
    operations = 12.0 * tokens * d_model * d_sae
    return Line(f"train {site}", 0, tokens, weights, memory, operations)


def _searched(request: LearnRequest, counts: Counts, passes: int) -> int:
    """Return the settings that a search tries which goes through its grid so often."""
    config, sites = request.calibration, len(request.sites)
    latents = sum(k <= request.latents for k in config.k) or 1
    rankings = len(config.rankings) or RANKINGS + (
        request.selection.score == ATTRIBUTION
    )
    rows = ROWS if counts.pictures else 2 * ROWS
    kinds = {
        "latents": (rankings, latents, len(config.gates), len(config.actions)),
        "rows": (rows, 1, len(config.row_gates), len(config.row_shares)),
    }
    grids = [v for kind, v in kinds.items() if request.edits in (kind, "both")]
    return most_settings(grids, sites, passes)


def _calibrate(request: LearnRequest, counts: Counts, size: ModelSize) -> Line:
    """Count prompts of a search that goes through its grid as often as it may, and
    operations of one that ends after the first time and shares every picture among
    the questions about it under one mask.
    """
    config, sites = request.calibration, len(request.sites)
    searched, scored = counts.searched, counts.scored
    finals = config.finalists + (PRUNINGS * sites if config.prune else 0)
    # A common setting is sought as each concept's own is, and then asked everything.
    passes = 2 * _searched(request, counts, config.passes) * searched.screening
    finals += 1 + config.finalists
    # The unedited model is asked everything too, on both splits.
    passes += (1 + finals) * searched.questions + 2 * scored.questions
    half = min(1.0, 2 * config.screen)
    semifinals = 2 * config.finalists * half
    passes += round(semifinals * searched.questions)
    # A stronger edit: more latents, a lower gate or more of each, at one of the sites.
    passes += STEPS * 3 * sites * searched.questions
    least, whole = 2 * _searched(request, counts, 1), finals + semifinals
    questions = round(least * searched.screening + whole * searched.questions)
    pictures = round(least * searched.screening_pictures + whole * searched.pictures)
    tokens = (questions + scored.questions) * _prompt_tokens(counts)
    tokens += (pictures + scored.pictures) * size.picture.prompt_tokens
    # Only at the vision site does each mask encode its pictures anew.
    encoded = searched.distinct + scored.distinct
    if all(map(is_vision, request.sites)):
        encoded = pictures + scored.pictures
    operations = 2.0 * tokens * size.text_parameters
    operations += encoded * size.picture_operations
    return Line("calibrate", passes, 0, 0, 0, operations)


def matrix_rate(device: str, seconds: float = 0.5) -> float:
    """Measure products in the type that is fastest here; operations a second.

    Raises: ConfigError if the device is not there
    """
    import torch
    from torch.utils.benchmark import Timer

    from vllm_sauce.learning.training.sae_lens_training import check_device

    def rate(width: int, dtype: torch.dtype) -> float:
        a = torch.randn(width, width, device=device).to(dtype)
        threads = torch.get_num_threads()
        timer = Timer("a @ a", globals={"a": a}, num_threads=threads)
        return 2.0 * width**3 / timer.blocked_autorange(min_run_time=seconds).median

    check_device(device)
    if device.startswith("cuda"):
        return rate(4096, torch.bfloat16)
    single, half = rate(1024, torch.float32), rate(256, torch.bfloat16)
    # Without instructions of their own such products take minutes.
    return single if half < single / 2 else max(single, rate(1024, torch.bfloat16))


def as_table(lines: list[Line], rate: float, notes: Sequence[str] = ()) -> Table:
    """Return the plan for a terminal; ``rate`` in operations a second."""

    def total(name: str) -> Any:
        return sum(getattr(line, name) for line in lines)

    head = ("stage", "prompts ≤", "rows", "disk", "memory", "time ≥")
    title = "What sauce learn will take"
    table = Table(*head, title=title, caption="\n".join(notes) or None)
    whole = Line("all", total("passes"), 0, total("disk"), 0, total("operations"))
    for line in (*lines, whole):
        rows = f"{line.tokens:,}" if line.tokens else "-"
        table.add_row(
            line.stage,
            f"{line.passes:,}" if line.passes else "-",
            "" if line is whole else rows,
            _size(line.disk),
            "" if line is whole else _size(line.memory),
            _duration(line.operations / rate),
        )
    return table


def _size(count: int) -> str:
    return "-" if not count else f"{count / 2**30:,.2f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:,.1f} h"


def planned(request: LearnRequest, train_pictures: int | None = None) -> Table:
    """Count, measure this machine, and return the plan for a terminal.

    ``train_pictures``: so many, instead of those of the request's folder.

    Raises: ConfigError, ActivationsError
    """
    size = ModelSize.read(request.model)
    check_sites(request.model, request.sites)
    counts = count(request)
    if train_pictures is not None:
        counts = replace(counts, training=pictures_alone(train_pictures))
    rate = matrix_rate(request.training.device)
    speed = f"times are at this machine's matrix rate, {rate / 1e9:,.0f} GFLOP/s"
    told = [*notes(request, counts, size), speed]
    return as_table(plan(request, counts, size), rate, told)


def notes(request: LearnRequest, counts: Counts, size: ModelSize) -> list[str]:
    """Return what must be known to read the plan."""
    found = []
    if size.picture.tiled:
        found.append(
            f"{size.architecture}: every picture counted with all tiles, "
            f"{size.picture.patches:,} patches; others take less"
        )
    if size.picture.of is not None:
        wide, high = size.picture.of
        found.append(
            f"{size.architecture} takes pictures at their own size: each counted as "
            f"{wide} x {high}, {size.picture.patches:,} rows"
        )
    if any(map(is_vision, request.sites)) and size.architecture not in VISION_ROWS:
        found.append(
            f"a plan only: the vision site of {size.architecture} is not proven; "
            f"{WHERE}"
        )
    source = counts.training or counts
    tokens = request.training.training_tokens
    for site in request.trained:
        rows = _rows(site, source, size)
        if rows and tokens > rows:
            found.append(
                f"{site}: {rows:,} rows to learn from, each is shown "
                f"{tokens / rows:.1f} times"
            )
    return found
