# SPDX-License-Identifier: Apache-2.0
"""Write sauce-tiny's activations as a harvest, from transformers and without an engine.

Each sample is one new picture with one question and the model's greedy answer.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor
from transformers import AutoProcessor

from tiny.concepts import DOMAIN_OF, FOREGROUNDS, TRAIN_STYLES
from tiny.dataset import HELD_OUT_SEED
from tiny.exam import MODEL_FOLDER, Tiny
from tiny.questions import TRAIN, describe_questions, naming_questions
from tiny.world import Renderer
from vllm_sauce.activations.shard_writer import ShardWriter
from vllm_sauce.activations.shards import (
    HARVEST_FILE,
    SAMPLES_FILE,
    HarvestFile,
    Role,
    Rows,
    SiteFormat,
)
from vllm_sauce.bundle import fingerprint_model
from vllm_sauce.concepts import VISION, decoder_layer_idx
from vllm_sauce.data.samples import PictureFile, Sample, open_picture
from vllm_sauce.errors import ActivationsError
from vllm_sauce.files import write_whole
from vllm_sauce.models.site_hooks import SiteFn, site_hook

ANSWER_TOKENS = 8
SEED = HELD_OUT_SEED + 21


def draw_samples(folder: Path, count: int, seed: int = SEED) -> list[Sample]:
    """Draw pictures into a folder, each with one question about it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    renderer = Renderer(TRAIN_STYLES)
    samples = []
    for number in track(range(count), "pictures"):
        picture = renderer.picture(rng, FOREGROUNDS[number % len(FOREGROUNDS)])
        path = folder / f"{number:05d}.png"
        picture.image.save(path)
        domain = DOMAIN_OF[str(rng.choice(picture.concepts))]
        questions = (
            describe_questions(TRAIN)
            if rng.random() < 0.5
            else naming_questions(domain, TRAIN)
        )
        samples.append(
            Sample(
                key=str(path),
                prompt=str(rng.choice(questions)),
                picture=PictureFile(path),
                concepts=picture.concepts,
            )
        )
    return samples


def write_harvest(
    tiny: Tiny,
    samples: list[Sample],
    sites: list[str],
    folder: Path,
    shard_tokens: int = 16_384,
) -> None:
    """Write the activations of samples at some sites as a harvest's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(sample.to_json()) + "\n" for sample in samples)
    config = tiny.model.config
    widths = {
        site: config.vision_config.hidden_size
        if site == VISION
        else config.text_config.hidden_size
        for site in sites
    }
    harvest = HarvestFile(
        model=str(MODEL_FOLDER),
        fingerprint=fingerprint_model(MODEL_FOLDER),
        sites={
            site: SiteFormat(d_model=width, dtype="float32")
            for site, width in widths.items()
        },
        samples_sha256=hashlib.sha256(lines.encode()).hexdigest(),
        max_tokens=ANSWER_TOKENS,
    )
    write_whole(folder / SAMPLES_FILE, lines.encode(), ActivationsError)
    header = harvest.model_dump_json().encode()
    write_whole(folder / HARVEST_FILE, header, ActivationsError)
    processor = AutoProcessor.from_pretrained(MODEL_FOLDER)
    writer = ShardWriter.open(folder, "w0", shard_tokens)
    for number, sample in enumerate(track(samples, "activations")):
        writer.add(number, _rows(tiny, processor, sample, number, sites))
    writer.flush()


@torch.inference_mode()
def _rows(
    tiny: Tiny, processor: object, sample: Sample, number: int, sites: list[str]
) -> dict[str, Rows]:
    assert sample.picture is not None and callable(processor)
    text = "user: <image>" + tiny.before + sample.prompt + tiny.after
    picture = open_picture(sample.picture)
    inputs = processor(images=picture, text=text, return_tensors="pt")
    ids = inputs["input_ids"][0]
    kept: dict[str, list[Tensor]] = {site: [] for site in sites}
    with ExitStack() as hooks:
        for site in sites:
            hooks.enter_context(site_hook(tiny.model, site, _keeper(kept[site])))
        # The prompt's rows come at once, then those of each token that is read again;
        # the last one written is not.
        tiny.model.generate(**inputs, max_new_tokens=ANSWER_TOKENS, do_sample=False)
    rows = {}
    for site in sites:
        x = torch.cat([part.flatten(0, -2) for part in kept[site]])
        role = torch.full((len(x),), Role.IMAGE, dtype=torch.uint8)
        if decoder_layer_idx(site) is not None:
            role[: len(ids)][ids != tiny.model.config.image_token_id] = Role.TEXT
            role[len(ids) :] = Role.GENERATED
        rows[site] = Rows(
            activations=x,
            sample=torch.full((len(x),), number, dtype=torch.int32),
            position=torch.arange(len(x), dtype=torch.int32),
            role=role,
            # Nothing here asks what a token is.
            token=torch.full((len(x),), -1, dtype=torch.int32),
        )
    return rows


def _keeper(kept: list[Tensor]) -> SiteFn:
    def keep(x: Tensor) -> Tensor:
        kept.append(x.clone())
        return x

    return keep
