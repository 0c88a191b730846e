# SPDX-License-Identifier: Apache-2.0
"""Activations of sauce-tiny, taken once."""

import pytest

from tests.learning.importing.layouts import MODEL, PICTURES, QUESTIONS
from vllm_sauce.learning.importing.site_samples import read_pictures, sample_activations


@pytest.fixture(scope="session")
def vision():
    """The vision site's activations on 16 pictures, by site."""
    return sample_activations(MODEL, "vision", None, read_pictures(PICTURES))


@pytest.fixture(scope="session")
def decoder():
    """Those of all four layers on questions about the pictures, by site."""
    pictures = read_pictures(PICTURES)
    return sample_activations(MODEL, "decoder.1", QUESTIONS, pictures)
