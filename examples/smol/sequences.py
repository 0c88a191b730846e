# SPDX-License-Identifier: Apache-2.0
"""Questions and answers as batches of training sequences.

A picture's tokens come once in a row; behind them stand several first turns, each of
which sees the picture and itself only (or, at times, one conversation). Text turns
share a row without a picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from tiny.model import NUM_PATCHES

START = "<|im_start|>user\n"
END = "<|im_end|>"
TURN = END + "\n<|im_start|>assistant\n"
AGAIN = "\n" + START


@dataclass
class Row:
    """One training sequence; every list has one entry per token."""

    ids: list[int]
    positions: list[int]
    owners: list[int]
    """The turn a token belongs to; 0 is the picture, which all of them see."""
    answers: list[int]
    """The number of the answer a token is of, or -1."""


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length, those with a picture first."""

    ids: Tensor
    """Shape [rows, length]."""
    positions: Tensor
    """Shape [rows, length]."""
    mask: Tensor
    """What each token sees, to be added. Shape [rows, 1, length, length]."""
    predicts: Tensor
    """Whether the next token is part of an answer. Shape [rows, length]."""
    targets: Tensor
    """Those tokens. Shape [num_targets]."""
    answers: Tensor
    """The number within its row of the answer that each is of. Shape [num_targets]."""


class Layout:
    """Lays questions and answers out as SmolLM2's chat has them."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.encode = cache(self._encode)
        self.image_start = len(self.encode(START))
        (self.end,) = self.encode(END)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False).input_ids)

    def picture_row(
        self, turns: Sequence[tuple[str, str]], conversation: bool = False
    ) -> Row:
        """Return a row of turns about one picture."""
        ids = [*self.encode(START), *[0] * NUM_PATCHES]
        row = Row(ids, list(range(len(ids))), [0] * len(ids), [-1] * len(ids))
        for number, (question, answer) in enumerate(turns):
            opening = AGAIN if conversation and number else "\n"
            owner = 1 if conversation else number + 1
            said = self.encode(answer + END)
            # Far from the picture, as in a conversation, though it sees none of it:
            # a picture is then found at any distance.
            start = len(row.ids)
            self._add(row, number, opening + question, said, start, owner)
        return row

    def text_row(self, turns: Sequence[tuple[str, Sequence[int]]]) -> Row:
        """Return a row of turns, answered by tokens, that see only themselves."""
        row = Row([], [], [], [])
        for number, (question, said) in enumerate(turns):
            self._add(row, number, START + question, said, 0, number + 1)
        return row

    def _add(
        self,
        row: Row,
        number: int,
        asked: str,
        said: Sequence[int],
        start: int,
        owner: int,
    ) -> None:
        question = self.encode(asked + TURN)
        length = len(question) + len(said)
        row.ids += [*question, *said]
        row.positions += range(start, start + length)
        row.owners += [owner] * length
        row.answers += [-1] * len(question) + [number] * len(said)


def collate(rows: Sequence[Row], dtype: torch.dtype = torch.bfloat16) -> Batch:
    """Pad rows and build what each token may see."""
    length = max(len(row.ids) for row in rows)

    def padded(lists: Sequence[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in lists])

    ids = padded([row.ids for row in rows], 0)
    owners = padded([row.owners for row in rows], -1)
    answers = padded([row.answers for row in rows], -1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = owners[:, :, None] == owners[:, None, :]
    # Padding sees the padding before it: a token that sees nothing would be NaN.
    seen = causal & (same | (owners[:, None, :] == 0))
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -1e9)
    predicts = torch.zeros_like(seen[:, 0])
    predicts[:, :-1] = answers[:, 1:] >= 0
    return Batch(
        ids=ids,
        positions=padded([row.positions for row in rows], 0),
        mask=mask[:, None],
        predicts=predicts,
        targets=ids[:, 1:][predicts[:, :-1]],
        answers=answers[:, 1:][predicts[:, :-1]],
    )
