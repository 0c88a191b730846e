# SPDX-License-Identifier: Apache-2.0
"""What looks into a model by transformers alone knows every vision-language row."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.places import TINY_MODEL
from tests.plugin.models.compared import picture, widths, write_template
from tests.plugin.models.vision_models import VISION_MODELS, write_vision_model
from tests.plugin.random_bundle import random_sae
from vllm_sauce.concepts import is_vision
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.inspection.activation_maps import activation_maps, latent_peaks
from vllm_sauce.learning.importing.site_samples import sample_activations
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.model_size import ModelSize, check_sites
from vllm_sauce.models.site_hooks import site_hook

SIZES = [(112, 112), (56, 112), (112, 84)]
SQUARES = {"llava", "gemma3", "paligemma", "aria"}
"""Whose rows are a picture's patches, in order."""


@cache
def _written(name: str, folder: Path) -> Path:
    model = write_vision_model(folder / name, name, TINY_MODEL)
    write_template(model, VISION_MODELS[name].word)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def samples(folder: Path) -> list[Sample]:
    found = []
    for i, size in enumerate(SIZES):
        file = folder / f"{i}.png"
        picture(i, *size).save(file)
        found.append(Sample(key=f"s{i}", prompt="a dog", picture=PictureFile(file)))
    return found


@torch.inference_mode()
def rows_alone(loaded: LoadedModel, sample: Sample, site: str) -> torch.Tensor:
    """Return what passes a site for one picture alone."""
    seen: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.float().flatten(0, -2).clone())
        return x

    with site_hook(loaded.model, site, keep):
        loaded.model(**loaded.inputs([sample]))
    return torch.cat(seen)


@pytest.mark.parametrize("name", VISION_MODELS)
def test_latents_are_shown_of_each_pictures_own_rows(
    name: str, folder: Path, samples: list[Sample]
) -> None:
    """Pictures of several sizes, asked for together."""
    loaded = LoadedModel.load(_written(name, folder), "cpu")
    wide = widths(loaded.model.config)
    saes: dict[str, Any] = {
        s: random_sae(i, d) for i, (s, d) in enumerate(wide.items())
    }
    peaks = latent_peaks(loaded, samples, saes, {site: (3, 5) for site in wide})
    for site in filter(is_vision, wide):
        for row, sample in enumerate(samples):
            acts = saes[site].encode(rows_alone(loaded, sample, site))[:, [3, 5]]
            wanted = acts.amax(0)
            # Processors pad a batch's tiles; a model's own noise in bfloat16.
            torch.testing.assert_close(
                peaks[site].peak[row], wanted, rtol=0.02, atol=0.02
            )
    wanted_maps = {(site, 3): [0, 1, 2] for site in wide}
    found = activation_maps(loaded, samples, saes, wanted_maps)
    assert set(found.pictures) == {0, 1, 2}
    whole = {one.grid.numel() > 1 for one in found.maps["vision", 3]}  # type: ignore[union-attr]
    if name in SQUARES:
        assert whole == {True}
    elif name not in ("internvl",):  # One tile is whole; more are not.
        assert whole == {False}


@pytest.mark.parametrize("name", VISION_MODELS)
def test_an_import_samples_the_vision_site(name: str, folder: Path) -> None:
    """Rows of the width that an SAE for the site has."""
    model = _written(name, folder)
    wide = widths(LoadedModel.load(model, "cpu").model.config)
    shown = [picture(i, *size) for i, size in enumerate(SIZES)]
    for site in filter(is_vision, wide):
        found = sample_activations(model, site, pictures=shown)[site]
        assert found.shape[1] == wide[site] and len(found) >= 12


def test_layers_that_attend_to_pictures_read_nothing_of_texts(folder: Path) -> None:
    """Two of six; the others are compared without them."""
    model, texts = _written("mllama", folder), ["is there a dog ?"] * 20
    found = sample_activations(model, "decoder.1", texts=texts)
    assert {"decoder.1", "decoder.3"} <= set(found)
    assert not {"decoder.2", "decoder.4"} & set(found)
    with pytest.raises(ConfigError, match="texts alone do not reach decoder.2"):
        sample_activations(model, "decoder.2", texts=texts)


@pytest.mark.parametrize("name", VISION_MODELS)
def test_a_plan_knows_sites_and_widths(name: str, folder: Path) -> None:
    model = _written(name, folder)
    wide = widths(LoadedModel.load(model, "cpu").model.config)
    check_sites(model, list(wide))
    size = ModelSize.read(model)
    assert {site: size.width(site) for site in wide} == wide
    assert size.picture.patches > 0 and size.picture.prompt_tokens > 0
