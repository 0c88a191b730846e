# SPDX-License-Identifier: Apache-2.0
"""The edit without an engine: masks of requests and pictures, sites, the op."""

from __future__ import annotations

import cProfile
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from tests.plugin.worker.doubles import begin, step_of
from tests.plugin.worker.test_decoder_site import slots_of
from tests.unlearning.test_slots import build_sae, build_table, mask
from vllm_sauce.concepts import TOKENS, Catalogue, Concept, SiteEdit
from vllm_sauce.errors import CanaryError, InvalidRequestError
from vllm_sauce.plugin.sites import swap
from vllm_sauce.plugin.sites.encoder_batches import Announced
from vllm_sauce.plugin.worker.runtime import SauceRuntime, VisionSite, run_edit
from vllm_sauce.unlearning.mask import Checked, renamed
from vllm_sauce.unlearning.slots import SiteTable


def build_table_of(name: str) -> SiteTable:
    """Return a table whose slot 0 holds a mask."""
    table = build_table()
    assert table.assign([mask(name)]) == [0]
    return table


def connector(kind: Callable[..., nn.Module] = nn.Linear) -> tuple[VisionSite, Any]:
    """Return a vision site and a module that it edits."""
    table = build_table()
    site = VisionSite("vision", Announced(["vision"]), table)
    module = kind(table.W_dec_rows.shape[1], 3)
    swap.on_input(module, site.edit)
    return site, module


@pytest.mark.parametrize("shape", [(2, 3), (1, 6), (6,), (1, 2, 3)])
def test_every_row_of_a_batch_is_edited_whatever_its_shape(
    shape: tuple[int, ...],
) -> None:
    """Towers hand on [images, patches, d], [1, rows, d] or [rows, d]."""
    site, module = connector()
    assert site.table is not None
    d_model = site.table.W_dec_rows.shape[1]
    x = 3 * torch.randn(*shape, d_model, generator=torch.Generator().manual_seed(1))
    plain = module(x)
    with site.announced.encoding([mask("dog")] * 2):
        edited = module(x)
        by_name = module(input=x)
    whole = x.reshape(6, d_model).clone()
    run_edit(whole, None, np.zeros(6, np.int32), build_table_of("dog"))
    assert torch.equal(edited, module(whole.view_as(x)))
    assert (whole != x.reshape(6, d_model)).any(1).sum() >= 3
    assert torch.equal(edited, by_name)
    with site.announced.encoding([None]):
        assert torch.equal(module(x), plain)
    assert int(site.table.edited_tokens.sum()) == 12


def mark(*names: str) -> dict[str, Any]:
    """Return what the engine core hands on of a request."""
    return {"other": 1, "sauce": Checked(mask(*names) if names else None)}


def runtime_of_one_layer() -> SauceRuntime:
    return SauceRuntime(cast(Any, None), {"decoder.1": build_table()}, 8)


def test_only_what_the_core_has_checked_has_a_label() -> None:
    """A proven worker takes nothing else, were it a whole mask in admission's form."""
    runtime = runtime_of_one_layer()
    runtime.proven = True
    assert runtime.label_of(mark("dog")) == mask("dog")
    assert runtime.label_of(mark()) is None
    wire = mask("dog").to_wire()
    for extra_args in (
        None,
        {},
        {"other": 1},
        {"sauce": {"mask": None}},
        {"sauce": {"mask": wire}},
        {"sauce": mask("dog")},
        {"sauce": {"forget": ["dog"]}},
        {"sauce_forget": ["dog"]},
    ):
        with pytest.raises(InvalidRequestError, match="sauce's admission"):
            runtime.label_of(extra_args)


def test_before_the_proof_only_vllms_own_requests_pass() -> None:
    runtime = runtime_of_one_layer()
    assert runtime.label_of(None) is runtime.label_of({"other": 1}) is None
    assert runtime.label_of(mark()) is None
    with pytest.raises(CanaryError, match="before the canary proved"):
        runtime.label_of(mark("dog"))
    with pytest.raises(InvalidRequestError):
        runtime.label_of({"sauce": {"mask": None}})


def test_a_step_writes_every_sites_slots() -> None:
    runtime = SauceRuntime(
        cast(Any, None), {f"decoder.{i}": build_table() for i in (1, 2)}, 8
    )
    runtime.proven = True
    step_of(runtime, [None, mask("dog")], [0, 1], [1, 2])
    for site in runtime.decoder.values():
        assert slots_of(site)[:4] == [-1, 0, 0, -1]
    runtime.clear_step()
    assert all(set(slots_of(site)) == {-1} for site in runtime.decoder.values())


def test_each_kind_of_token_has_its_part_of_the_mask() -> None:
    """Position 0 none at all; a request that did not begin whole stops the step."""
    site, dog = "decoder.1", SiteEdit.uniform([3])
    pictures = replace(SiteEdit.uniform([5]), tokens=("image",))
    everywhere = replace(SiteEdit.uniform([7]), tokens=TOKENS)
    edits = {"dog": dog, "cat": pictures, "red": everywhere}
    catalogue = Catalogue(
        Concept(name=name, domain="d", edits={site: edit})
        for name, edit in edits.items()
    )
    # dog, cat and red where pictures are; dog and red on other words; red on the sink.
    assert catalogue.token_groups(site) == 3
    table = SiteTable(build_sae(), catalogue, site, 6, 4)
    runtime = SauceRuntime(cast(Any, None), {site: table}, 16)
    runtime.proven = True
    at = SimpleNamespace(offset=1, length=2, is_embed=None)
    prompt: dict[str, Any] = {
        "length": 5,
        "features": [SimpleNamespace(identifier="p", modality="image", mm_position=at)],
    }
    masks = [mask("dog", "cat", "red"), mask("cat")]
    step_of(runtime, masks, [0, 0], [7, 7], **prompt)
    written = slots_of(runtime.decoder[site])
    rows = [
        ()
        if slot < 0
        else tuple(table.mask_latents[slot, : table.slot_len[slot]].tolist())
        for slot in written
    ]
    sink, picture, words = (2,), (0, 1, 2), (0, 2)
    assert rows[:7] == [sink, picture, picture, *[words] * 4]
    assert rows[7:] == [(), (1,), (1,), *[()] * 6]
    step_of(runtime, masks[:1], [5], [1], **prompt)
    assert [written[3], -1] == slots_of(runtime.decoder[site])[:2]
    step_of(runtime, [None], [0], [7])
    assert set(slots_of(runtime.decoder[site])) == {-1}
    with pytest.raises(AttributeError, match="mm_features"):
        runtime.add_request(
            "half",
            SimpleNamespace(extra_args=mark("dog")),
            SimpleNamespace(prompt_token_ids=[0]),
        )
    with pytest.raises(CanaryError, match="did not begin well"):
        runtime.tell_step(["half"], np.array([0]), np.array([7]))


def test_a_request_that_fails_as_it_begins_takes_no_others_place() -> None:
    """Nor is it taken for what it was before, of the same name."""
    runtime = runtime_of_one_layer()
    runtime.proven, site = True, runtime.decoder["decoder.1"]
    begin(runtime, "a", None)
    begin(runtime, "b", mask("dog"))
    runtime.remove_request("a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "begin_request", None)
        with pytest.raises(TypeError):
            begin(runtime, "c", mask("cat"))
        with pytest.raises(TypeError):
            begin(runtime, "b2", None)
    begin(runtime, "d", None)
    begin(runtime, "e", None)
    runtime.tell_step(["b", "d", "e"], np.array([3, 3, 3]), np.array([1, 1, 1]))
    assert slots_of(site)[:4] == [0, -1, -1, -1]
    with pytest.raises(AttributeError):
        runtime.add_request(
            "d",
            SimpleNamespace(extra_args=mark("dog")),
            SimpleNamespace(prompt_token_ids=[0]),
        )
    with pytest.raises(CanaryError, match="did not begin well"):
        runtime.tell_step(["d"], np.array([0]), np.array([1]))


def test_requests_begin_while_a_profiler_looks_on() -> None:
    """It holds on to what is called, as a debugger does."""
    runtime = runtime_of_one_layer()
    runtime.proven = True
    profile = cProfile.Profile()
    for number in range(40):
        profile.runcall(begin, runtime, str(number), mask("dog"))
    profile.runcall(runtime.tell_step, ["39"], np.array([3]), np.array([1]))
    assert slots_of(runtime.decoder["decoder.1"])[:2] == [0, -1]


def test_numbers_of_other_requests_are_refused() -> None:
    runtime = runtime_of_one_layer()
    runtime.proven = True
    step_of(runtime, [None, mask("dog")], [1, 1], [1, 1])
    for starts, counts in (([5], [1, 1]), ([5, 5], [1])):
        with pytest.raises(ValueError, match="2 requests have"):
            runtime.tell_step(["0", "1"], np.array(starts), np.array(counts))


@pytest.mark.parametrize(
    ("start", "count", "slots"),
    [(2, 1, [-1]), (3, 1, [0]), (2, 2, [-1, 0]), (9, 2, [0, 0])],
)
def test_what_is_generated_begins_behind_the_prompt(
    start: int, count: int, slots: list[int]
) -> None:
    """Its last token is the prompt's, also where a step holds nothing else."""
    site = "decoder.1"
    edit = replace(SiteEdit.uniform([3]), tokens=("generated",))
    catalogue = Catalogue([Concept(name="dog", domain="d", edits={site: edit})])
    table = SiteTable(build_sae(), catalogue, site, 2, 4)
    runtime = SauceRuntime(cast(Any, None), {site: table}, 8)
    runtime.proven = True
    step_of(runtime, [mask("dog")], [start], [count])
    assert slots_of(runtime.decoder[site])[:count] == slots


def test_what_runs_stops_when_the_proof_is_taken_back() -> None:
    """A request that began before goes on no more; those without a mask do."""
    runtime = runtime_of_one_layer()
    runtime.proven = True
    step_of(runtime, [mask("dog"), None], [3, 3], [1, 1])
    runtime.proven = False
    runtime.tell_step(["1"], np.array([4]), np.array([1]))
    with pytest.raises(CanaryError, match="proof"):
        runtime.tell_step(["0"], np.array([4]), np.array([1]))


def test_a_pictures_name_decides_its_mask() -> None:
    """Of those masks alone that a scheduled request carries."""
    runtime = runtime_of_one_layer()
    dog, cat = mask("dog"), mask("cat")
    runtime.live = {"a": dog, "b": None, "waits": cat}
    names = [renamed("p", dog), "p", renamed("q", dog)]
    assert runtime.picture_labels(names, ["a", "b", "a"]) == [dog, None, dog]
    with pytest.raises(CanaryError, match="belongs to no known mask"):
        runtime.picture_labels([renamed("p", cat)], ["a", "b"])


class Layer(nn.Module):
    """Leaves a stream in two parts, as a decoder layer does."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 3 * x, x.clone()


def test_a_compiled_layer_is_edited_in_one_graph() -> None:
    """The tables are its buffers: what is written there later, a graph reads."""
    runtime, layer = runtime_of_one_layer(), Layer()
    runtime.proven = True
    act = runtime.at_decoder("decoder.1", layer)
    swap.on_stream(layer, "sum", act)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    graph: Any = torch.compile(layer, backend="eager", fullgraph=True)
    plain, _ = graph(x)
    assert torch.equal(plain, 3 * x)
    step_of(runtime, [None, mask("dog", strength=9.0)], [0, 1], [1, 5], length=6)
    edited, residual = graph(x)
    assert torch.equal(edited[0], plain[0]) and torch.equal(residual, x)
    assert not torch.equal(edited[1:], plain[1:])
    assert int(runtime.tables["decoder.1"].edited_tokens.sum()) == 5
    assert torch.equal(layer(x)[0], edited)
