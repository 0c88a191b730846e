# SPDX-License-Identifier: Apache-2.0
import json
from dataclasses import replace
from typing import Any

import pytest

from tests.unlearning.catalogues import DIGEST, build_catalogue
from vllm_sauce.client import ForgetRequest
from vllm_sauce.concepts import SPARING, Catalogue, Concept, SiteEdit
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import (
    ConfigError,
    InvalidRequestError,
    TooManyConceptsError,
    UnknownConceptError,
)
from vllm_sauce.unlearning.mask import (
    Checked,
    Mask,
    check_mandatory,
    check_size,
    marked,
    resolve_mask,
    without_decoder,
)

CATALOGUE = build_catalogue()


def config(*mandatory, **limits):
    return SauceConfig(bundle="unused", forget=mandatory, **limits)


def resolve(*names, strength=1.0, mandatory=(), digest=DIGEST, **limits):
    asked = ForgetRequest(forget=names, strength=strength) if names else None
    return resolve_mask(asked, CATALOGUE, digest, config(*mandatory, **limits))


def test_masks_are_canonical():
    assert resolve("dog", "cat") == resolve("cat", "dog", "cat")
    assert resolve("dog").concepts == (("dog", 1.0),)


def test_ids_tell_masks_apart():
    masks = [
        resolve("dog"),
        resolve("cat"),
        resolve("dog", "cat"),
        resolve("dog", strength=2.0),
        resolve("dog", digest="e" * 64),
    ]
    assert len({mask.mask_id for mask in masks}) == len(masks)


def test_nothing_to_forget_is_no_mask():
    assert resolve() is None
    assert resolve("dog", strength=0.0) is None


@pytest.mark.parametrize("strength", [0.0, 0.5, 3.0])
def test_no_request_weakens_a_mandatory_concept(strength):
    mask = resolve("dog", "cat", strength=strength, mandatory=("dog",))
    assert dict(mask.concepts)["dog"] == max(1.0, strength)
    assert ("cat" in mask.names()) == (strength > 0)
    assert resolve(mandatory=("dog",)).concepts == (("dog", 1.0),)


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_unknown_concepts_are_refused_at_any_strength(strength):
    with pytest.raises(UnknownConceptError, match="did you mean 'dog'"):
        resolve("dogg", strength=strength)


def test_limits_count_the_union_at_each_site():
    assert resolve("dog", "cat", "red", max_latents=3) is not None
    with pytest.raises(TooManyConceptsError, match="need 3 at 'vision'"):
        resolve("dog", "cat", max_latents=2)
    with pytest.raises(TooManyConceptsError, match="need 3 at 'vision'"):
        resolve("dog", "cat", "red", max_latents=2)
    edits = {"decoder.1": SiteEdit.uniform([1, 2])}
    wide = Catalogue([Concept(name="wide", domain="objects", edits=edits)])
    with pytest.raises(TooManyConceptsError, match="need 2 at 'decoder.1'"):
        check_size(["wide"], wide, config(max_latents=1))
    with pytest.raises(TooManyConceptsError, match="at most 1 concepts"):
        resolve("dog", mandatory=("cat",), max_concepts=1)


@pytest.mark.parametrize(
    ("kinds", "evaded"),
    [
        (("generated",), True),
        (("image", "generated"), True),
        (("prompt",), False),
        (("prompt", "generated"), False),
    ],
)
def test_what_a_client_evades_token_by_token_is_not_mandatory(kinds, evaded):
    """The first token of each answer is unedited: sent back, the next is, too."""
    edit = replace(SiteEdit.uniform([1]), tokens=kinds)
    catalogue = Catalogue([Concept(name="dog", domain="o", edits={"decoder.1": edit})])
    if evaded:
        with pytest.raises(ConfigError, match="'dog' is edited in answers and not"):
            check_mandatory(catalogue, config("dog"))
        check_mandatory(catalogue, config("dog", allow_weak=("dog",)))
    else:
        check_mandatory(catalogue, config("dog"))


def test_mandatory_concepts_are_checked_at_start():
    check_mandatory(CATALOGUE, config("dog"))
    with pytest.raises(ConfigError, match="did you mean 'dog'"):
        check_mandatory(CATALOGUE, config("dogs"))
    with pytest.raises(ConfigError, match="at most 2 latents"):
        check_mandatory(CATALOGUE, config("dog", "cat", max_latents=2))


def test_wire_round_trip_and_tampering():
    mask = resolve("dog", "red", strength=2.5)
    wire = json.loads(json.dumps(mask.to_wire()))
    assert Mask.from_wire(wire, DIGEST) == mask
    wire["concepts"][0][1] = 0.5
    with pytest.raises(InvalidRequestError, match="does not fit"):
        Mask.from_wire(wire, DIGEST)


def test_a_mark_replaces_our_keys():
    mark = {"mask": {"mask_id": "x"}}
    assert marked({"sauce_forget": ["a"], "other": 1}, mark) == {
        "other": 1,
        "sauce": mark,
    }
    assert marked(None, Checked(None)) == {"sauce": Checked(None)}


@pytest.mark.parametrize(
    "change",
    [
        {"mask_id": "x"},
        {"concepts": []},
        {"concepts": [["dog"]]},
        {"concepts": [["dog", True]]},
        {"concepts": [["dog", 0]]},
        {"concepts": [["dog", "1"]]},
        {"concepts": [["dog", 10**400]]},
        {"concepts": [[["dog"], 1.0]]},
        {"concepts": 1},
        {"concepts": [["dog", 1.0], ["cat", 1.0]]},
        {"more": 1},
    ],
)
def test_malformed_wire_is_refused(change):
    with pytest.raises(InvalidRequestError):
        Mask.from_wire({**resolve("dog").to_wire(), **change}, DIGEST)


def test_only_what_admission_writes_is_read():
    wrong: list[Any] = [[("dog", 11.0)], [(5, 1.0)], []]
    for concepts in wrong:
        with pytest.raises(InvalidRequestError):
            Mask.from_wire(Mask.of(concepts, DIGEST).to_wire(), DIGEST)
    others: tuple[Any, ...] = (None, "dog", [], {})
    for data in others:
        with pytest.raises(InvalidRequestError):
            Mask.from_wire(data, DIGEST)


def test_sites_of_a_mask():
    assert resolve("dog", "red").sites(CATALOGUE) == ("decoder.1", "vision")


def test_concepts_that_no_decoder_site_edits():
    assert without_decoder(("red", "dog", "cat", "dog"), CATALOGUE) == ("cat", "dog")
    assert without_decoder(("red",), CATALOGUE) == ()
    both = Concept(
        name="both",
        domain="objects",
        edits={"vision": SiteEdit.uniform([1]), "decoder.1": SiteEdit.uniform([1])},
    )
    assert without_decoder(("both",), Catalogue([both])) == ()
    for kinds, text in ((("image",), False), (("sink",), False), (("prompt",), True)):
        edit = replace(SiteEdit.uniform([1]), tokens=kinds)
        one = Concept(name="both", domain="objects", edits={"decoder.1": edit})
        assert (without_decoder(("both",), Catalogue([one])) == ()) == text
    with pytest.raises(UnknownConceptError):
        without_decoder(("dgo",), CATALOGUE)


@pytest.mark.parametrize(
    ("site", "kinds", "apart", "pictures"),
    [
        ("decoder.1", SPARING, False, False),
        ("decoder.1", ("image",), False, True),
        ("decoder.1", ("prompt",), True, True),
        ("decoder.1", ("image", "generated"), True, True),
        ("decoder.1", ("generated",), True, False),
        ("vision", ("image", "prompt"), False, False),
        ("vision", ("image",), False, False),
    ],
)
def test_masks_that_edit_prompts_and_something_else_otherwise(
    site, kinds, apart, pictures
):
    edit = replace(SiteEdit.uniform([1]), tokens=kinds)
    one = Catalogue([Concept(name="c", domain="d", edits={site: edit})])
    mask = Mask.of([("c", 1.0)], DIGEST)
    assert mask.tells_turns_apart(one) is apart
    assert mask.tells_pictures_apart(one) is pictures
    spares = site != "vision" and "generated" in kinds and "prompt" not in kinds
    assert mask.spares_prompts(one) is spares
