# SPDX-License-Identifier: Apache-2.0
"""A decoder layer's buffer: the slot of every token of a step, and the op's plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vllm_sauce.concepts.site import GENERATED
from vllm_sauce.unlearning.mask import KEPT_MASKS, Mask
from vllm_sauce.unlearning.slots import SiteTable, host_zeros
from vllm_sauce_kernels.masked_edit import kernel_choice, plan_size, write_plan

_ALIGNMENT = 4
"""Numbers of 32 bits: kernels read a plan that starts at 16 bytes."""

_UNKNOWN = -2
"""In the place of a slot: the table has to be asked."""


@dataclass(frozen=True, slots=True)
class PromptRuns:
    """Tokens of a step that belong to masked prompts, in runs of a kind, in order."""

    places: np.ndarray
    """Of those requests in the batch."""

    sizes: np.ndarray
    """How many runs each of those has."""

    masks: Sequence[Mask]
    """Of each run, as are kinds and counts."""

    kinds: Sequence[str]
    counts: Sequence[int]


NO_PROMPT = PromptRuns(np.zeros(0, np.int64), np.zeros(0, np.int64), (), (), ())


class DecoderSite:
    """A decoder layer's table and the slot of every token of the current step.

    A runner's requests have an index each; 0 is a dummy's.
    """

    def __init__(self, table: SiteTable, max_num_tokens: int) -> None:
        self.table = table
        # One copy brings a step: the slot of each token and, behind it, the plan.
        self._plan_at = -(-max_num_tokens // _ALIGNMENT) * _ALIGNMENT
        size = plan_size(max_num_tokens, table.num_slots) if reads_plan(table) else 0
        self._step_tensor = torch.zeros(
            self._plan_at + size, dtype=torch.int32, device=table.mask_len.device
        )
        self.slot_of_token = self._step_tensor[:max_num_tokens].fill_(-1)
        self.plan = self._step_tensor[self._plan_at :] if size else None
        self._parts: dict[tuple[str, str], Mask | None] = {}
        self._answers: list[Mask | None] = [None]
        """What acts on the tokens that a request generates, by its index."""
        self._slots = np.full(1, -1, np.int32)
        """The slot of each of those, as far as it is known."""
        self._generation = table.generation
        """The table's, when they were."""
        self.written = 0
        """How many tokens' slots are in the buffer; behind them, all are -1."""
        self._step: tuple[bytes, int] | None = None
        """The slots in the buffer and the table's generation, if it holds a step's."""

    def part(self, mask: Mask | None, kind: str) -> Mask | None:
        """Return what of a mask acts here on tokens of a kind, None for nothing."""
        if mask is None:
            return None
        key = mask.mask_id, kind
        if key not in self._parts:
            if len(self._parts) >= KEPT_MASKS:
                self._parts.clear()
            table = self.table
            self._parts[key] = mask.at_tokens(table.catalogue, table.site, kind)
        return self._parts[key]

    def begin_request(self, index: int, mask: Mask | None) -> None:
        """Expect a request, by its index."""
        if (more := index + 1 - len(self._answers)) > 0:
            more += index  # twice as many
            self._answers += [None] * more
            self._slots = np.append(self._slots, np.full(more, -1, np.int32))
        part = self._answers[index] = self.part(mask, GENERATED)
        self._slots[index] = -1 if part is None else _UNKNOWN

    def set_requests(
        self, indices: np.ndarray, num_tokens: np.ndarray, prompts: PromptRuns
    ) -> None:
        """Give each token of a batch its mask's slot; all others get -1.

        Tokens outside of ``prompts`` are generated ones. All masks of the step stay.

        Shapes: indices, num_tokens [num_reqs]
        Raises: ConfigError for more masks than there are slots
        """
        slots, slots_of_runs = self._slots_of_step(indices, prompts)
        if slots_of_runs:
            sizes = np.ones(len(slots), np.int64)
            sizes[prompts.places] = prompts.sizes
            inside = np.zeros(len(slots), bool)
            inside[prompts.places] = True
            inside = inside.repeat(sizes)
            slots, num_tokens = slots.repeat(sizes), num_tokens.repeat(sizes)
            slots[inside], num_tokens[inside] = slots_of_runs, prompts.counts
        self._write(slots.repeat(num_tokens))

    def _slots_of_step(
        self, indices: np.ndarray, prompts: PromptRuns
    ) -> tuple[np.ndarray, list[int]]:
        """Return the slot of what each request generates, and of each prompt's run.

        Shapes: indices [num_reqs] -> [num_reqs], [num_runs]
        """
        table, parts = self.table, list(map(self.part, prompts.masks, prompts.kinds))
        if self._generation != table.generation:
            self._forget_slots()
        slots = self._slots[indices]
        unknown = np.flatnonzero(slots == _UNKNOWN)
        asked = [self._answers[index] for index in indices[unknown].tolist()]
        found = table.resident(asked + parts)
        if found is not None:
            self._slots[indices[unknown]] = slots[unknown] = found[: len(asked)]
            return slots, found[len(asked) :]
        # Not all are there. None of this step may leave, so that all are named.
        answers = [self._answers[index] for index in indices.tolist()]
        found = table.assign(answers + parts)
        self._forget_slots()
        slots[:] = found[: len(answers)]
        self._slots[indices] = slots
        return slots, found[len(answers) :]

    def _forget_slots(self) -> None:
        self._slots[self._slots >= 0] = _UNKNOWN
        self._generation = self.table.generation

    def set_spans(
        self, masks: Sequence[Mask | None], num_tokens: Sequence[int]
    ) -> None:
        """Give each run of tokens its mask's slot; all others get -1.

        Shapes: masks and num_tokens [num_runs], in the order of the batch.
        """
        slots = np.array(self.table.assign(masks), np.int32)
        self._write(slots.repeat(num_tokens))

    def _write(self, slots: np.ndarray) -> None:
        """Bring a step to the device. Shapes: slots [num_tokens]"""
        step = slots.tobytes(), self.table.generation
        # Decoding repeats itself, and its masks cannot have left their slots since.
        if step == self._step:
            return
        self._step = None
        edited = len(slots) if slots.max(initial=-1) >= 0 else 0
        # Idle: the buffer is all -1 already.
        if not self.written and not edited:
            return
        if len(slots) > len(self.slot_of_token):
            raise ValueError(
                f"there is room for {len(self.slot_of_token)} tokens, got {len(slots)}"
            )
        if self.plan is None:
            total = max(self.written, len(slots))
        else:
            total = len(self._step_tensor)
        values = host_zeros(total, self._step_tensor.device)
        into = values.numpy()
        into[len(slots) : self._plan_at] = -1
        into[: len(slots)] = slots
        if self.plan is not None:
            max_tokens = len(self.slot_of_token)
            write_plan(into[self._plan_at :], into[:max_tokens], self.table.slot_len)
        self._step_tensor[:total].copy_(values, non_blocking=True)
        self.written, self._step = edited, step

    @property
    def step(self) -> object:
        """What the buffer was written for: that step's own object, None if lost."""
        step = self._step
        return None if step is None or step[1] != self.table.generation else step

    def clear(self) -> None:
        """Forget the last step: dummy and profiling runs must see no slot."""
        self._step = None
        if self.written:
            self.slot_of_token[: self.written].fill_(-1)
            if self.plan is not None:
                self.plan.zero_()
            self.written = 0


def reads_plan(table: SiteTable) -> bool:
    """Say whether the op reads a plan where a table is; CPU forms do not."""
    return table.mask_len.device.type != "cpu" or kernel_choice() == "triton"
