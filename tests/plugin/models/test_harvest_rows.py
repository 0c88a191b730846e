# SPDX-License-Identifier: Apache-2.0
"""Harvests of models whose towers hand on tiles, flat rows, or several layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.plugin.models.compared import (
    Asked,
    Reference,
    picture,
    widths,
    write_bundle,
    write_template,
)
from tests.plugin.models.vision_models import VISION_MODELS, write_vision_model
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.learning.harvest.engine import harvest
from vllm_sauce.learning.harvest.settings import HarvestRequest, HarvestSettings

pytestmark = pytest.mark.engine

SIZES = [(112, 84), (56, 112), (112, 112)]


@pytest.mark.parametrize(
    "name", ["llava_pixtral", "llava_onevision", "qwen3_vl", "idefics3"]
)
def test_rows_are_those_that_pass_in_transformers(
    name: str, tmp_path: Path, model_dir: Path
) -> None:
    """Each picture's own, of every site, in one run of all."""
    told = VISION_MODELS[name]
    model = write_vision_model(tmp_path / "model", name, model_dir)
    write_template(model, told.word)
    reference = Reference(model, write_bundle(tmp_path / "bundle", model))
    samples = []
    for i, size in enumerate(SIZES):
        file = tmp_path / f"{i}.png"
        picture(i, *size).save(file)
        samples.append(Sample(key=f"s{i}", prompt="a dog", picture=PictureFile(file)))
    wide = widths(reference.model.config)
    request = HarvestRequest(
        model=str(model),
        sites=tuple(wide),
        out=tmp_path / "harvest",
        harvest=HarvestSettings(max_tokens=0),
        engine_args={
            "dtype": "float32",
            "max_model_len": 1024,
            "limit_mm_per_prompt": told.limits,
            "kv_cache_memory_bytes": 64 << 20,
        },
    )
    assert not harvest(request, tuple(samples)).failed
    wanted = [
        reference.activations(Asked(f"{told.word} a dog", picture(i, *size)), [*wide])
        for i, size in enumerate(SIZES)
    ]
    for site, d_model in wide.items():
        store = ActivationStore.open(request.out, site, verify=True)
        numbers, positions, _ = store.labels()
        for number, seen in enumerate(wanted):
            mine = (numbers == number).nonzero()[:, 0]
            mine = mine[positions[mine].argsort()]
            x = store.rows(mine)
            assert x.shape == seen[site].shape == (len(mine), d_model)
            torch.testing.assert_close(x, seen[site], rtol=1e-4, atol=1e-4)
