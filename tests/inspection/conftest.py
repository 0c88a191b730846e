# SPDX-License-Identifier: Apache-2.0
"""sauce-tiny, its bundle, and some pictures of its world."""

from __future__ import annotations

import pytest

from tests.inspection.world import NAMES
from tests.tiny_world import draw, sample_of
from tiny.exam import LATENTS_FOLDER, MODEL_FOLDER
from vllm_sauce.bundle import Bundle
from vllm_sauce.data.samples import Sample
from vllm_sauce.models.loaded_model import LoadedModel


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel.load(MODEL_FOLDER, "cpu")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(LATENTS_FOLDER)


@pytest.fixture(scope="module")
def saes(bundle):
    return {site: item.weights for site, item in bundle.sites.items()}


@pytest.fixture(scope="module")
def pictures():
    return draw([name for name in NAMES for _ in range(5)])


@pytest.fixture(scope="module")
def samples(pictures) -> list[Sample]:
    return [sample_of(picture, f"{i}") for i, picture in enumerate(pictures)]
