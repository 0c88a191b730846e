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
from vllm_sauce.activations.shards import Role
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.concepts import is_vision
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.learning.harvest.engine import harvest
from vllm_sauce.learning.harvest.settings import HarvestRequest, HarvestSettings

pytestmark = pytest.mark.engine

SIZES = [(112, 84), (56, 112), (112, 112)]


@pytest.mark.parametrize(
    "name",
    ["llava_pixtral", "llava_onevision", "qwen3_vl", "idefics3", "mllama", "gemma4"],
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
    asked = [
        Asked(f"{told.word} a dog", picture(i, *size)) for i, size in enumerate(SIZES)
    ]
    wanted = [reference.activations(one, [*wide]) for one in asked]
    config = reference.model.config
    word = getattr(config, "image_token_id", None) or config.image_token_index
    for site, d_model in wide.items():
        store = ActivationStore.open(request.out, site, verify=True)
        numbers, positions, roles = store.labels()
        for number, (one, seen) in enumerate(zip(asked, wanted, strict=True)):
            mine = (numbers == number).nonzero()[:, 0]
            mine = mine[positions[mine].argsort()]
            read, right = reference.inputs(one), seen[site]
            if is_vision(site):
                assert (roles[mine] == Role.IMAGE).all()
                right = right[: int(len(right) * real_tiles(read))]
            else:
                pictured = read["input_ids"][0] == word
                assert torch.equal(roles[mine] == Role.IMAGE, pictured)
            x = store.rows(mine)
            assert x.shape == right.shape == (len(mine), d_model)
            torch.testing.assert_close(x, right, rtol=1e-4, atol=1e-4)


def real_tiles(read: dict[str, torch.Tensor]) -> float:
    """Return the part of a picture's tiles that does not fill it up."""
    tiles = read.get("aspect_ratio_mask")
    return 1.0 if tiles is None else float(tiles.float().mean())
