# SPDX-License-Identifier: Apache-2.0
"""Small harvests whose rows are known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tiny.dataset import pixel_values
from tiny.exam import MODEL_FOLDER, Tiny
from vllm_sauce.activations.shard_writer import ShardWriter
from vllm_sauce.activations.shards import (
    HARVEST_FILE,
    SAMPLES_FILE,
    HarvestFile,
    Role,
    Rows,
    SiteFormat,
)
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.bundle import fingerprint_model
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.data.samples import open_picture
from vllm_sauce.errors import ActivationsError
from vllm_sauce.files import write_whole
from vllm_sauce.models.site_hooks import vision_features

SITE = "decoder.1"
ROLES = {"i": Role.IMAGE, "t": Role.TEXT, "g": Role.GENERATED}


def begin_harvest(
    folder: Path,
    lines: Sequence[Mapping[str, Any]],
    sites: Mapping[str, SiteFormat],
    *,
    weights: bool = False,
) -> Path:
    """Write what a harvest of sauce-tiny has before its shards."""
    folder.mkdir(parents=True, exist_ok=True)
    harvest = HarvestFile(
        model=str(MODEL_FOLDER),
        fingerprint=fingerprint_model(MODEL_FOLDER, weights=weights),
        sites=dict(sites),
        samples_sha256="0" * 64,
        max_tokens=0,
    )
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    write_whole(folder / SAMPLES_FILE, content, ActivationsError)
    header = harvest.model_dump_json().encode()
    write_whole(folder / HARVEST_FILE, header, ActivationsError)
    return folder


def write_harvest(
    folder: Path,
    activations: Tensor,
    *,
    sample_rows: int = 10,
    shard_samples: int = 10,
    dtype: str = "float32",
) -> Path:
    """Write rows as samples of one length; a token's role goes round the three."""
    parts = activations.split(sample_rows)
    lines: list[dict[str, Any]] = [
        {"key": f"s{n}", "prompt": f"prompt {n}", "picture": None, "concepts": []}
        for n in range(len(parts))
    ]
    site = SiteFormat(d_model=activations.shape[1], dtype=dtype)
    begin_harvest(folder, lines, {SITE: site})
    writer = ShardWriter.open(folder, "w0", shard_tokens=10**9)
    for number, rows in enumerate(parts):
        position = torch.arange(len(rows), dtype=torch.int32)
        part = Rows(
            activations=rows.to(getattr(torch, dtype)),
            sample=torch.full((len(rows),), number, dtype=torch.int32),
            position=position,
            role=(position % len(Role)).to(torch.uint8),
            token=position + 1000 * number,
        )
        writer.add(number, {SITE: part})
        if number % shard_samples == shard_samples - 1:
            writer.flush()
    writer.flush()
    return folder


def harvest_pictures(folder: Path, file: ConceptFile) -> Path:
    """Write the patches of a file's pictures, each picture's under its first sample."""
    samples = file.samples()
    lines = [sample.to_json() for sample in samples]
    first: dict[str, int] = {}
    for number, line in enumerate(lines):
        first.setdefault(str(line["picture"]), number)
    pictures = [samples[i].picture for i in sorted(first.values())]
    images = [np.asarray(open_picture(p)) for p in pictures if p is not None]
    features = vision_features(Tiny.load().model, pixel_values(np.stack(images)))
    site = SiteFormat(d_model=features.shape[2], dtype="float32")
    begin_harvest(folder, lines, {"vision": site}, weights=True)
    writer = ShardWriter.open(folder, "w0")
    patches = features.shape[1]
    for number, x in zip(sorted(first.values()), features, strict=True):
        rows = Rows(
            x,
            torch.full((patches,), number, dtype=torch.int32),
            torch.arange(patches, dtype=torch.int32),
            torch.full((patches,), Role.IMAGE, dtype=torch.uint8),
            torch.full((patches,), -1, dtype=torch.int32),
        )
        writer.add(number, {"vision": rows})
    writer.flush()
    return folder


def numbered_store(folder: Path, num_rows: int, **options: int) -> ActivationStore:
    """Return a store whose row number n holds n in its only column."""
    rows = torch.arange(num_rows, dtype=torch.float32)[:, None]
    write_harvest(folder, rows, **options)  # type: ignore[arg-type]
    return ActivationStore.open(folder, SITE)


def labelled_store(
    folder: Path, samples: Sequence[tuple[str, Sequence[int]]], site: str = SITE
) -> ActivationStore:
    """Write samples, each a letter a token for its role, and the tokens.

    A row holds its sample's number times ten, and its position.
    """
    lines = [{"key": f"s{n}", "prompt": ""} for n in range(len(samples))]
    begin_harvest(folder, lines, {site: SiteFormat(d_model=1, dtype="float32")})
    writer = ShardWriter.open(folder, "w0")
    for number, (roles, tokens) in enumerate(samples):
        position = torch.arange(len(tokens), dtype=torch.int32)
        rows = Rows(
            (10.0 * number + position)[:, None],
            torch.full_like(position, number),
            position,
            torch.tensor([ROLES[role] for role in roles], dtype=torch.uint8),
            torch.tensor(tokens, dtype=torch.int32),
        )
        writer.add(number, {site: rows})
        writer.flush()  # a file each
    return ActivationStore.open(folder, site)


def sparse_data(num_tokens: int, d_model: int = 16) -> tuple[Tensor, Tensor]:
    """Return sums of few of 24 directions, far from the origin, and the directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, d_model, generator=generator)
    active = torch.rand(num_tokens, 24, generator=generator) < 0.08
    strength = torch.rand(num_tokens, 24, generator=generator)
    return (active * strength) @ directions + 5, directions
