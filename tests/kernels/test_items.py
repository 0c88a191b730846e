# SPDX-License-Identifier: Apache-2.0
"""Who does what in a launch: programs that have work, empty items, loads of a rank.

The kernels are run, interpreted, and what each program loads and stores is noted.
"""

from __future__ import annotations

import importlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels.inputs import Args, make_args, small_integers
from tests.kernels.plans import planned

PROGRAMS = 528
"""Of an H200: four for each of 132 multiprocessors."""


@dataclass
class Noted:
    """What the programs of one kernel do."""

    loads: list[np.ndarray] = field(default_factory=list)
    """Addresses, a load at a time."""
    stores: list[tuple[int, np.ndarray]] = field(default_factory=list)
    """Program and addresses, a store at a time."""

    def covers(self, tensor: torch.Tensor) -> bool:
        """Return whether each element of a tensor is stored, and exactly once."""
        stored = np.sort(np.concatenate([at.ravel() for _, at in self.stores]))
        wanted = tensor.data_ptr() + tensor.element_size() * np.arange(tensor.numel())
        return np.array_equal(stored, wanted)


@pytest.fixture
def noted(interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Noted]:
    """What each kernel's programs do, by its name."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    found = {
        name: Noted() for name in ("encode_kernel", "rank_kernel", "decode_kernel")
    }
    running: list[Noted] = []

    def noted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        running[-1].loads.append(ptrs.data[mask.data])
        return load(self, ptrs, mask, *rest)

    def noted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        running[-1].stores.append((self.grid_idx[0], ptrs.data[mask.data]))
        return store(self, ptrs, value, mask, *rest)

    monkeypatch.setattr(builder, "create_masked_load", noted_load)
    monkeypatch.setattr(builder, "create_masked_store", noted_store)

    def wrapped(kernel: Any, note: Noted) -> Any:
        class Launcher:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                running.append(note)
                return kernel[grid]

        return Launcher()

    for name, note in found.items():
        monkeypatch.setattr(
            interpreted, name, wrapped(getattr(interpreted, name), note)
        )
    monkeypatch.setattr(interpreted, "num_programs", lambda device: PROGRAMS)
    return found


def batch(num_tokens: int, num_masks: int, d_model: int, latents: int = 32) -> Args:
    """Masks in turns, as in decoding, or a span of tokens each; all latents fire."""
    shape = (num_tokens, d_model, 40, latents, num_masks)
    args = make_args(shape, small_integers(), residual=False)
    order = torch.arange(num_tokens, dtype=torch.int32)
    turns, spans = order % num_masks, order * num_masks // num_tokens
    args["slot_of_token"] = (turns if num_tokens <= 256 else spans).contiguous()
    args["mask_len"].fill_(latents)
    args["mask_gate"].fill_(-1e9)
    args["mask_scale"].zero_(), args["mask_shift"].fill_(1.0)
    return args


# A tile holds 16 tokens of a mask in launches of up to 256 tokens, 64 beyond. Encoding
# splits d_model in 512 // tiles parts, at most 16 and 1,024 // tokens; decoding in
# 512 // tiles parts, at most d_model / 128 (small tiles) or / 64 (large).
@pytest.mark.parametrize(
    ("num_tokens", "num_masks", "d_model", "tiles", "splits", "parts"),
    [
        (1, 1, 2048, 1, 16, 16),
        (64, 64, 1024, 64, 8, 8),
        (256, 1, 2048, 16, 4, 16),
        (256, 64, 1024, 64, 4, 8),
        (256, 256, 256, 256, 2, 2),
        (512, 1, 2048, 8, 2, 32),
        (512, 256, 128, 256, 2, 2),
        (2048, 1, 1024, 32, 1, 16),
        (2048, 64, 512, 64, 1, 8),
    ],
)
def test_items_are_shared_out_evenly_and_cover_all_once(
    noted: dict[str, Noted],
    monkeypatch: pytest.MonkeyPatch,
    num_tokens: int,
    num_masks: int,
    d_model: int,
    tiles: int,
    splits: int,
    parts: int,
) -> None:
    """As many programs have work as there are items; none has two while one idles."""
    scratch: list[torch.Tensor] = []
    new_empty = torch.Tensor.new_empty

    def kept(self: torch.Tensor, size: Any, **kwargs: Any) -> torch.Tensor:
        scratch.append(new_empty(self, size, **kwargs))
        return scratch[-1]

    monkeypatch.setattr(torch.Tensor, "new_empty", kept)
    args = batch(num_tokens, num_masks, d_model)
    planned(**args)
    hidden_pre = next(tensor for tensor in scratch if tensor.ndim == 3)
    assert noted["encode_kernel"].covers(hidden_pre[:splits])
    assert noted["decode_kernel"].covers(args["hidden_states"])
    for kernel, items in (("encode", tiles * splits), ("decode", tiles * parts)):
        # An item is one store, and of something.
        stores = noted[f"{kernel}_kernel"].stores
        assert all(at.size for _, at in stores)
        assert len(stores) == items
        of_program = Counter(program for program, _ in stores)
        assert len(of_program) == min(items, PROGRAMS)
        assert max(of_program.values()) - min(of_program.values()) <= 1


def test_an_idle_step_has_no_item(noted: dict[str, Noted]) -> None:
    args = batch(256, 256, 128)
    args["slot_of_token"].fill_(-1)
    planned(**args)
    for note in noted.values():
        assert note.stores == []


def loads_of_rank(noted: dict[str, Noted], latents: int, gate: float) -> list[Any]:
    """Return what ranking loads where latents exceed a gate or do not."""
    args = batch(16, 1, 64, latents)
    args["mask_gate"].fill_(gate)
    noted["rank_kernel"].loads.clear()
    planned(**args, topk=4)
    rows = args["W_enc_rows"]
    last = rows.data_ptr() + rows.numel() * rows.element_size()
    loads = noted["rank_kernel"].loads
    read = [((at >= rows.data_ptr()) & (at < last)).any() for at in loads]
    return [len(loads), any(read)]


def test_ranks_are_left_at_once_where_nothing_fires(noted: dict[str, Noted]) -> None:
    """No row of the dictionary is read, and 32 latents take one look as one does."""
    silent, read = loads_of_rank(noted, 32, np.inf)
    assert not read
    assert silent == loads_of_rank(noted, 1, np.inf)[0]
    assert loads_of_rank(noted, 32, -np.inf)[1]
