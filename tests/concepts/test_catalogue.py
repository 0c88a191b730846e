# SPDX-License-Identifier: Apache-2.0
import pytest

from vllm_sauce.concepts import Catalogue, Concept, SiteEdit, decoder_layer_idx
from vllm_sauce.errors import ConfigError, UnknownConceptError

EDIT = SiteEdit.uniform([3, 1])


def concept(name, domain="objects", **edits):
    return Concept(name=name, domain=domain, edits=edits or {"vision": EDIT})


def test_catalogue_is_sorted_and_grouped():
    catalogue = Catalogue([concept("red", "colours"), concept("dog"), concept("cat")])
    assert catalogue.names() == ("cat", "dog", "red")
    assert catalogue.domains() == {"colours": ("red",), "objects": ("cat", "dog")}
    assert catalogue.latents("vision") == (1, 3)
    assert catalogue.latents("decoder.1") == ()


def test_unknown_name_suggests_and_is_case_sensitive():
    catalogue = Catalogue([concept("dog"), concept("red")])
    with pytest.raises(UnknownConceptError, match="did you mean 'dog'") as caught:
        catalogue.concept("Dog")
    assert caught.value.suggestions == ("dog",)
    assert "Dog" not in catalogue


def test_duplicate_concepts_are_refused():
    with pytest.raises(ConfigError, match="twice"):
        Catalogue([concept("dog"), concept("dog")])


@pytest.mark.parametrize("name", ["", " dog", "dog\n", "d\x00g"])
def test_bad_names_are_refused(name):
    with pytest.raises(ConfigError, match="name"):
        concept(name)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("latents", (), "at least one"),
        ("latents", (1, 1), "once"),
        ("latents", (-1, 1), "from 0"),
        ("latents", (True, 3), "from 0"),
        ("gamma", (0.0,), "one number"),
        ("gamma", (0.0, float("nan")), "finite"),
        ("shift", (0.0, float("inf")), "finite"),
        ("gate", (0.0, -0.1), "at least 0"),
    ],
)
def test_bad_edits_are_refused(field, value, message):
    good = {
        "latents": (3, 1),
        "gamma": (0.0, 0.0),
        "shift": (0.0, 0.0),
        "gate": (0.0, 0.0),
    }
    with pytest.raises(ConfigError, match=message):
        SiteEdit(**{**good, field: value})


def test_sites():
    assert decoder_layer_idx("decoder.12") == 12
    assert decoder_layer_idx("vision") is None
    for wrong in ("", "decoder", "decoder.-1", "decoder.01", "decoder.1\n", "Vision"):
        with pytest.raises(ConfigError):
            decoder_layer_idx(wrong)
