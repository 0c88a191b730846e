# SPDX-License-Identifier: Apache-2.0
"""The canary: every way in which vLLM runs a step, and what it finds."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from tests.plugin.support import Ask, cold, run, runner_of
from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.sites import swap
from vllm_sauce.plugin.worker.canary import DummyBatch, dummy_batches, prove
from vllm_sauce.plugin.worker.runtime import edit_stream
from vllm_sauce_kernels.masked_edit import masked_edit


def config(sizes: list[int] | None, seqs: int, tokens: int) -> Any:
    """Return what of a configuration decides the batches."""
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(
            max_num_seqs=seqs, max_num_batched_tokens=tokens
        ),
        compilation_config=SimpleNamespace(cudagraph_capture_sizes=sizes),
    )


@pytest.mark.parametrize(
    ("sizes", "seqs", "tokens", "decode", "others"),
    [
        # Captured up to 512: a decode batch, both ends, and a chunk beyond.
        ([1, 2, 4, 256, 512], 256, 8192, 256, [1, 512, 513]),
        # More sequences than are captured: what is decoded in a graph is.
        ([1, 8], 64, 2048, 8, [1, 8, 9]),
        # Nothing captured.
        ([], 8, 2048, 8, [16, 17]),
        (None, 256, 2048, 16, [16, 17]),
        # No step is larger than its budget.
        ([1, 64], 4, 64, 4, [1, 64]),
    ],
)
def test_a_batch_for_each_way_of_running_a_step(
    sizes: list[int] | None, seqs: int, tokens: int, decode: int, others: list[int]
) -> None:
    """Uniform decoding, the smallest and largest graph, a chunk larger than any."""
    assert dummy_batches(config(sizes, seqs, tokens)) == [
        DummyBatch(decode, uniform_decode=True),
        *(DummyBatch(count) for count in others),
    ]


def no_edit(model: Any) -> Callable[[], None]:
    """Take the op out of the decoder layer, as a stale compiled graph would."""
    (layer,) = [m for m in model.modules() if type(m).__name__.startswith("SauceLlama")]
    edited = type(layer)
    layer.__class__ = edited.__mro__[1]

    def undo() -> None:
        layer.__class__ = edited

    return undo


def two_edits(model: Any) -> Callable[[], None]:
    """Run the op twice on every token."""
    (layer,) = [m for m in model.modules() if type(m).__name__.startswith("SauceLlama")]
    edited = type(layer)
    swap.on_stream(layer, "sum", edit_stream)

    def undo() -> None:
        layer.__class__ = edited

    return undo


def no_effect(model: Any) -> Callable[[], None]:
    """Run the op on numbers that nobody reads."""
    (layer,) = [m for m in model.modules() if type(m).__name__.startswith("SauceLlama")]
    edited: Any = type(layer)
    (site,) = model._sauce_action.decoder.values()

    class Lost(edited):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            hidden_states, residual = edited.__mro__[1].forward(self, *args, **kwargs)
            lost = hidden_states.clone()
            tables = site.table.op_args()
            masked_edit(lost, residual, site.slot_of_token, **tables, plan=site.plan)
            return hidden_states, residual

    layer.__class__ = Lost

    def undo() -> None:
        layer.__class__ = edited

    return undo


def no_vision(model: Any) -> Callable[[], None]:
    """Let pictures go around the vision site."""
    projector = model.multi_modal_projector
    edited = type(projector)
    projector.__class__ = edited.__mro__[1]

    def undo() -> None:
        projector.__class__ = edited

    return undo


def a_way_around(model: Any) -> Callable[[], None]:
    """Add what enters the connector to what leaves it, in a tenth of the columns."""
    projector = model.multi_modal_projector
    edited: Any = type(projector)

    class Around(edited):  # type: ignore[misc]
        def forward(self, features: Any) -> Any:
            left = super().forward(features)
            width = left.shape[-1] // 10
            left[..., :width] += features[..., :width]
            return left

    projector.__class__ = Around

    def undo() -> None:
        projector.__class__ = edited

    return undo


def another_form(form: str) -> Callable[[Any], Callable[[], None]]:
    """List the layer's class with a form that is not its own."""

    def spoil(model: Any) -> Callable[[], None]:
        (layer,) = model._sauce_action.layers.values()
        edited: Any = type(layer)
        layer.__class__ = type(edited.__name__, (edited,), {"sauce_form": form})

        def undo() -> None:
            layer.__class__ = edited

        return undo

    return spoil


def zero_rows(model: Any) -> Callable[[], None]:
    """Lose what the vision site decodes with."""
    rows = model._sauce_action.vision["vision"].table.W_dec_rows
    kept = rows.clone()
    rows.zero_()
    return lambda: rows.copy_(kept)


def part_of_a_sum(model: Any) -> Callable[[], None]:
    """Let another tensor-parallel rank have another stream."""
    patch = pytest.MonkeyPatch()
    patch.setattr(compat, "of_all_ranks", lambda stream: [1.1 * stream, stream])
    return patch.undo


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_edit, "counted 0 edited tokens"),
        (two_edits, "counted .* edited tokens"),
        (no_effect, "the model's output did not change"),
        (no_vision, "100% of the numbers .* go around vision"),
        (a_way_around, "10% of the numbers .* go around vision"),
        (another_form("first"), "are listed as 'first', but the model does not"),
        (another_form("single"), "listed as 'single' left 2 tensors"),
        (part_of_a_sum, "leave each tensor-parallel rank a part"),
        (zero_rows, "not those that were loaded"),
    ],
)
def test_the_canary_finds(
    sauced: Any, spoil: Callable[[Any], Callable[[], None]], says: str
) -> None:
    """A model whose edit does not run as it must is not proven."""
    runner = runner_of(sauced)
    runtime = runner.model._sauce_action
    undo = spoil(runner.model)
    try:
        with pytest.raises(CanaryError, match=says):
            prove(runner)
        assert not runtime.proven
    finally:
        undo()
        prove(runner)
    assert runtime.proven


def test_a_proof_changes_no_answer(sauced: Any) -> None:
    """Slots, tables and caches are as they were for what comes next."""
    asks = [
        Ask(1, "what is it ?", ("both",)),
        Ask(2, "what is it ?"),
        Ask(None, "why ?"),
    ]
    cold(sauced)
    before = run(sauced, asks)
    prove(runner_of(sauced))
    after = run(sauced, asks)
    assert all(a.close(b) for a, b in zip(after, before, strict=True))
