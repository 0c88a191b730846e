# SPDX-License-Identifier: Apache-2.0
"""Harvests of models whose towers hand on tiles, flat rows, or several layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from vllm.distributed import cleanup_dist_env_and_memory

from tests.plugin.models.compared import (
    Asked,
    Reference,
    picture,
    widths,
    write_bundle,
    write_template,
)
from tests.plugin.models.text_models import write_text_model
from tests.plugin.models.vision_models import VISION_MODELS, write_vision_model
from vllm_sauce.activations.shards import Role
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.concepts import is_vision
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.learning.harvest.engine import harvest
from vllm_sauce.learning.harvest.settings import HarvestRequest, HarvestSettings

pytestmark = pytest.mark.engine

CLOSE = {"float32": 1e-4, "bfloat16": 0.05}
LOOSE = {"glm4v_moe": 2e-4}
"""One of 1,024 numbers is 1.2e-4 off."""
EACH_KIND = (
    *("llama", "gemma3", "cohere", "granite", "gpt2", "gpt_neox"),
    *("mamba2", "nemotron_h", "lfm2", "mixtral"),
)
SIZES = [(112, 84), (56, 112), (112, 112)]


@pytest.mark.parametrize("name", VISION_MODELS)
def test_rows_are_those_that_pass_in_transformers(
    name: str, tmp_path: Path, model_dir: Path
) -> None:
    """Each picture's own, of every site, in one run of all."""
    told = VISION_MODELS[name]
    model = write_vision_model(tmp_path / "model", name, model_dir)
    write_template(model, told.word)
    bundle = write_bundle(tmp_path / "bundle", model)
    reference = Reference(model, bundle, told.dtype, told.token_type)
    sizes = [SIZES[-1]] * len(SIZES) if told.square else SIZES
    samples = []
    for i, size in enumerate(sizes):
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
            "dtype": told.dtype,
            "max_model_len": 1024,
            "limit_mm_per_prompt": told.limits,
            "kv_cache_memory_bytes": 64 << 20,
        },
    )
    # An engine of another test may be left here.
    cleanup_dist_env_and_memory()
    assert not harvest(request, tuple(samples)).failed
    asked = [
        Asked(f"{told.word} a dog", picture(i, *size)) for i, size in enumerate(sizes)
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
            close = LOOSE.get(name, CLOSE[told.dtype])
            torch.testing.assert_close(x, right.float(), rtol=close, atol=close)


@pytest.mark.parametrize("name", EACH_KIND)
def test_rows_of_texts_are_those_that_pass_in_transformers(
    name: str, tmp_path: Path, model_dir: Path
) -> None:
    """Of layers that leave a sum, the first of two and one tensor; of states, too."""
    model = write_text_model(tmp_path, name, model_dir)
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    reference = Reference(model, write_bundle(tmp_path / "bundle", model))
    prompts = ("a dog", "is there a dog ? what is its colour ?")
    # Before the engine: serving transformers' own layers changes their classes.
    wide = widths(reference.model.config)
    wanted = [reference.activations(Asked(text), [*wide]) for text in prompts]
    request = HarvestRequest(
        model=str(model),
        sites=tuple(wide),
        out=tmp_path / "harvest",
        engine_args={"dtype": "float32", "kv_cache_memory_bytes": 64 << 20},
    )
    cleanup_dist_env_and_memory()
    samples = [Sample(key=text, prompt=text) for text in prompts]
    assert not harvest(request, tuple(samples)).failed
    for site, d_model in wide.items():
        store = ActivationStore.open(request.out, site, verify=True)
        numbers, positions, _ = store.labels()
        for number, seen in enumerate(wanted):
            mine = (numbers == number).nonzero()[:, 0]
            mine = mine[positions[mine].argsort()]
            right = seen[site]
            assert right.shape == (len(mine), d_model)
            close = LOOSE.get(name, CLOSE["float32"])
            torch.testing.assert_close(store.rows(mine), right, rtol=close, atol=close)


def real_tiles(read: dict[str, torch.Tensor]) -> float:
    """Return the part of a picture's tiles that does not fill it up."""
    tiles = read.get("aspect_ratio_mask")
    return 1.0 if tiles is None else float(tiles.float().mean())
