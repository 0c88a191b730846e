# SPDX-License-Identifier: Apache-2.0
"""Small harvests whose rows are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.activations.shard_writer import ShardWriter
from vllm_sauce.activations.shards import (
    HARVEST_FILE,
    SAMPLES_FILE,
    HarvestFile,
    Role,
    Rows,
    SiteFormat,
    write_whole,
)
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.bundle import fingerprint_model

TINY = Path(__file__).parents[2] / "examples/tiny/model"
SITE = "decoder.1"


def write_harvest(
    folder: Path,
    activations: Tensor,
    *,
    sample_rows: int = 10,
    shard_samples: int = 10,
    dtype: str = "float32",
) -> Path:
    """Write rows as samples of one length; a token's role goes round the three."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = activations.split(sample_rows)
    lines: list[dict[str, Any]] = [
        {"key": f"s{n}", "prompt": f"prompt {n}", "picture": None, "concepts": []}
        for n in range(len(parts))
    ]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    harvest = HarvestFile(
        model=str(TINY),
        fingerprint=fingerprint_model(TINY, weights=False),
        sites={SITE: SiteFormat(d_model=activations.shape[1], dtype=dtype)},
        samples_sha256="0" * 64,
        max_tokens=0,
    )
    write_whole(folder / SAMPLES_FILE, content)
    write_whole(folder / HARVEST_FILE, harvest.model_dump_json().encode())
    writer = ShardWriter(folder, "w0", shard_tokens=10**9)
    for number, rows in enumerate(parts):
        position = torch.arange(len(rows), dtype=torch.int32)
        part = Rows(
            activations=rows.to(getattr(torch, dtype)),
            sample=torch.full((len(rows),), number, dtype=torch.int32),
            position=position,
            role=(position % len(Role)).to(torch.uint8),
        )
        writer.add(number, {SITE: part})
        if number % shard_samples == shard_samples - 1:
            writer.flush()
    writer.flush()
    return folder


def numbered_store(folder: Path, num_rows: int, **options: int) -> ActivationStore:
    """Return a store whose row number n holds n in its only column."""
    rows = torch.arange(num_rows, dtype=torch.float32)[:, None]
    write_harvest(folder, rows, **options)  # type: ignore[arg-type]
    return ActivationStore.open(folder, SITE)


def sparse_data(num_tokens: int, d_model: int = 16) -> tuple[Tensor, Tensor]:
    """Return sums of few of 24 directions, far from the origin, and the directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, d_model, generator=generator)
    active = torch.rand(num_tokens, 24, generator=generator) < 0.08
    strength = torch.rand(num_tokens, 24, generator=generator)
    return (active * strength) @ directions + 5, directions
