# SPDX-License-Identifier: Apache-2.0
"""A harvest of sauce-tiny's vision site, taken with transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

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
    write_whole,
)
from vllm_sauce.bundle import fingerprint_model
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.data.samples import open_picture
from vllm_sauce.models.site_hooks import vision_features


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
    header = HarvestFile(
        model=str(MODEL_FOLDER),
        fingerprint=fingerprint_model(MODEL_FOLDER),
        sites={"vision": SiteFormat(d_model=features.shape[2], dtype="float32")},
        samples_sha256="0" * 64,
        max_tokens=0,
    )
    write_whole(folder / HARVEST_FILE, header.model_dump_json().encode())
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_whole(folder / SAMPLES_FILE, text.encode())
    writer = ShardWriter(folder, "w0")
    patches = features.shape[1]
    for number, x in zip(sorted(first.values()), features, strict=True):
        rows = Rows(
            x,
            torch.full((patches,), number, dtype=torch.int32),
            torch.arange(patches, dtype=torch.int32),
            torch.full((patches,), Role.IMAGE, dtype=torch.uint8),
        )
        writer.add(number, {"vision": rows})
    writer.flush()
    return folder
