# SPDX-License-Identifier: Apache-2.0
"""Admission alone: what it resolves, marks, renames and refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from vllm import PoolingParams, SamplingParams

import vllm_sauce
from vllm_sauce.concepts import Catalogue, SiteEdit
from vllm_sauce.errors import (
    BundleMismatchError,
    InvalidRequestError,
    TooManyConceptsError,
    UnknownConceptError,
)
from vllm_sauce.plugin import engine_core
from vllm_sauce.plugin.frontend import admission as module
from vllm_sauce.plugin.frontend.admission import Admission
from vllm_sauce.unlearning.mask import Mask, mask_id_of


def picture(identifier: str = "p", **data: Any) -> Any:
    """Return what vLLM lists for a picture of a request."""
    return SimpleNamespace(
        identifier=identifier,
        modality="image",
        data=data or {"pixel_values": 1},
        mm_hash=identifier,
    )


def request(*features: Any, salt: str | None = None) -> Any:
    """Return what of a request admission reads and writes."""
    return SimpleNamespace(mm_features=list(features), cache_salt=salt)


def admit(admission: Admission | None, params: Any, *features: Any) -> Any:
    """Send parameters and pictures through the hook; returns parameters, request."""
    seen: list[Any] = []

    def original(self: Any, name: str, prompt: Any, params: Any) -> Any:
        seen.append(params)
        return request(*features)

    processor = SimpleNamespace(
        _sauce_admission=admission,
        _sauce_modalities={"image", "video"},
        renderer=SimpleNamespace(mm_processor_cache=None),
    )
    made = module._process_inputs(original, processor, "x", "words", params)
    return seen[0], made


def masked(*concepts: str) -> SamplingParams:
    """Return parameters that forget concepts, and say something to somebody else."""
    extra = {**vllm_sauce.forget(*concepts), "other": 1} if concepts else {"other": 1}
    return SamplingParams(extra_args=extra)


@pytest.mark.parametrize("concepts", [(), ("seen",), ("read",), ("both", "read")])
def test_every_request_is_marked_and_named_by_its_mask(
    admission: Admission, concepts: tuple[str, ...]
) -> None:
    """What the client gave stays the client's, and goes on beside the mark."""
    params = masked(*concepts)
    before = dict(params.extra_args or {})
    passed, made = admit(admission, params, picture())
    mask = admission.resolve(before)
    wire = None if mask is None else mask.to_wire()
    assert passed.extra_args == {"other": 1, "sauce": {"mask": wire}}
    assert params.extra_args == before
    mask_id = None if mask is None else mask.mask_id
    in_decoder, in_tower = (set(concepts) & {name, "both"} for name in ("read", "seen"))
    assert mask_id_of(made.cache_salt or "") == (mask_id if in_decoder else None)
    (feature,) = made.mm_features
    assert mask_id_of(feature.identifier) == (mask_id if in_tower else None)


def test_what_cannot_be_admitted_is_a_clients_error(admission: Admission) -> None:
    with pytest.raises(UnknownConceptError, match="sen"):
        admit(admission, masked("sen"))
    with pytest.raises(InvalidRequestError, match="pooling requests are refused"):
        admit(admission, PoolingParams())
    with pytest.raises(InvalidRequestError, match="--plugin sauce"):
        admit(None, masked("seen"))
    config = replace(admission.config, max_concepts=1)
    with pytest.raises(TooManyConceptsError, match="at most 1 concepts"):
        admit(replace(admission, config=config), masked("seen", "read"))


def test_without_sauce_a_plain_request_passes_as_it_is() -> None:
    params = masked()
    passed, _ = admit(None, params)
    assert passed is params


def test_mandatory_concepts_are_in_every_mask(admission: Admission) -> None:
    one = replace(admission, config=replace(admission.config, forget=("read",)))
    for concepts, names in (((), ("read",)), (("seen",), ("read", "seen"))):
        passed, _ = admit(one, masked(*concepts))
        pairs = passed.extra_args["sauce"]["mask"]["concepts"]
        assert tuple(name for name, _ in pairs) == names


def test_concepts_of_pictures_only_may_be_refused(admission: Admission) -> None:
    config = replace(admission.config, require_decoder=True)
    one = replace(admission, config=config)
    with pytest.raises(InvalidRequestError, match="seen can be forgotten in pictures"):
        admit(one, masked("seen"))
    admit(one, masked("both"))


@pytest.mark.parametrize("concepts", [(), ("read",)])
def test_keys_that_look_like_ours_are_refused(
    admission: Admission, concepts: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidRequestError, match="uuid must not begin"):
        admit(admission, masked(*concepts), picture("sauce:x"))
    with pytest.raises(InvalidRequestError, match="cache_salt must not begin"):
        admission.identify(request(salt="sauce:x"), None)


@pytest.mark.parametrize(
    "feature",
    [
        picture(image_embeds=1),
        picture(pixel_values=1, image_embeds=1),
        picture(image_sizes=1),
        SimpleNamespace(identifier="p", modality="video", data=None, mm_hash="p"),
    ],
)
def test_what_goes_around_the_tower_is_refused_under_its_masks(
    admission: Admission, feature: Any
) -> None:
    admit(admission, masked("read"), feature)
    admit(admission, masked(), feature)
    with pytest.raises(InvalidRequestError, match="must be given as pixels"):
        admit(admission, masked("seen"), feature)


def test_a_bundle_replaced_meanwhile_is_refused(admission: Admission) -> None:
    again = Admission.open(admission.config, admission.bundle.digest)
    assert again.bundle.digest == admission.bundle.digest
    with pytest.raises(BundleMismatchError, match="changed while the engine started"):
        Admission.open(admission.config, "0" * 64)


def test_one_admission_a_process(admission: Admission) -> None:
    """Keyed by settings and digest, so that two engines share one."""
    section = {**admission.config.to_mapping(), "digest": admission.bundle.digest}
    configs = [SimpleNamespace(additional_config={"sauce": section}) for _ in "ab"]
    first, second = (module.admission_for(config) for config in configs)
    assert first is second is not None
    assert module.admission_for(SimpleNamespace(additional_config={})) is None


def test_a_session_keeps_its_mask(admission: Admission) -> None:
    """Chunks with the session's mask, or none of their own, pass; no other does."""

    async def chunks(*given: SamplingParams | None) -> AsyncIterator[Any]:
        for params in given:
            yield SimpleNamespace(sampling_params=params)

    async def passed(first: SamplingParams, *given: SamplingParams | None) -> int:
        stream = module._one_mask(admission, chunks(*given), first)
        return len([chunk async for chunk in stream])

    for one, other in ((masked(), masked("read")), (masked("read"), masked())):
        assert asyncio.run(passed(one, one, None, one)) == 3
        with pytest.raises(InvalidRequestError, match="same concepts"):
            asyncio.run(passed(one, one, other))


def with_weak(admission: Admission, **settings: Any) -> Admission:
    """Return an admission whose bundle says that "read" is not forgotten."""
    bundle = admission.bundle
    concepts = [
        replace(concept, forgotten=False, scores={"UAg": 0.31, "UAd": None})
        if concept.name == "read"
        else concept
        for concept in bundle.catalogue.values()
    ]
    weaker = replace(bundle, catalogue=Catalogue(concepts))
    return replace(
        admission, bundle=weaker, config=replace(admission.config, **settings)
    )


def test_what_is_not_forgotten_is_not_served_as_if_it_were(
    admission: Admission,
) -> None:
    """Unless the operator allows it; nobody who admits a request can go around it."""
    weak = with_weak(admission)
    with pytest.raises(InvalidRequestError, match=r"not to forget 'read' \(UAg 0.31\)"):
        weak.resolve(vllm_sauce.forget("read", "seen"))
    assert weak.resolve(vllm_sauce.forget("seen")) is not None
    allowed = with_weak(admission, allow_weak=("read",))
    assert allowed.resolve(vllm_sauce.forget("read")) is not None
    # As from a front end of another policy: the engine core refuses it, too.
    passed, made = admit(allowed, masked("read"), picture())
    made.sampling_params = passed
    assert engine_core.check(allowed, made) is not None
    with pytest.raises(InvalidRequestError, match="allow-weak read"):
        engine_core.check(weak, made)


def test_concepts_that_contradict_are_refused_on_both_sides(
    admission: Admission,
) -> None:
    """The request alone: where the rows are made it would end the worker."""
    read = admission.bundle.catalogue.concept("read")
    up = {site: SiteEdit.uniform(range(7, 40), 3.0) for site in read.edits}
    concepts = [
        *admission.bundle.catalogue.values(),
        replace(read, name="up", edits=up),
    ]
    bundle = replace(admission.bundle, catalogue=Catalogue(concepts))
    contrary = replace(admission, bundle=bundle)
    assert contrary.resolve(vllm_sauce.forget("up")) is not None
    asked = vllm_sauce.forget("read", "up")
    with pytest.raises(InvalidRequestError, match="read, up move latent 7"):
        contrary.resolve(asked)
    mask = Mask.of([("read", 1.0), ("up", 1.0)], bundle.digest)
    params = SamplingParams(extra_args={"sauce": {"mask": mask.to_wire()}})
    made = SimpleNamespace(sampling_params=params, cache_salt=None, mm_features=())
    with pytest.raises(InvalidRequestError, match="read, up move latent 7"):
        engine_core.check(contrary, made)
