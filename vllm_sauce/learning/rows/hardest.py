# SPDX-License-Identifier: Apache-2.0
"""Rows of tokens, told from the tokens that are most like their concept's.

A mean of everything else is mostly tokens that nobody would take for the concept, and
so is its covariance: a row that tells "about to say France" from it also reads what is
about to say Italy. So the tokens without the concept that a row reads most are looked
up, and the row is fitted anew on these and its own.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vllm_sauce.learning.rows.fit import Chunks, Fitted, Pairs

ROUNDS = 3
HARDEST = 400
"""Tokens that are looked up in a round, of each row."""
OWN = 1000
"""Tokens with the concept that are kept, of each row; which ones is drawn."""
WHOLE = 0.3
"""Share of the covariance of all tokens: few tokens say nothing of most directions."""


class Top:
    """The tokens with the highest scores among all that are shown."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: tuple[Tensor, ...] = ()
        """Scores, numbers and activations."""

    def add(self, score: Tensor, number: Tensor, x: Tensor) -> None:
        """Keep the best. Shapes: score and number [n], x [n, d_model]"""
        best = score.topk(min(self.most, len(score))).indices
        new: tuple[Tensor, ...] = (score[best], number[best], x[best])
        if self.kept:
            new = tuple(torch.cat(pair) for pair in zip(self.kept, new, strict=True))
            best = new[0].topk(min(self.most, len(new[0]))).indices
            new = tuple(values[best] for values in new)
        self.kept = new


def sharpen(fitted: Fitted, pairs: Pairs, whole: Tensor, chunks: Chunks) -> Fitted:
    """Return rows fitted on their own tokens and the others that they read most.

    Shapes: whole, the covariance of all tokens [d_model, d_model] float64
    """
    hardest: list[dict[int, Tensor]] = [{} for _ in pairs]
    own = [Top(OWN) for _ in pairs]
    for number in range(ROUNDS):
        found = [Top(HARDEST) for _ in pairs]
        for index, x, groups in chunks():
            reads = x.double() @ fitted.read + fitted.bias
            # As if by chance, and alike every time.
            drawn = ((index * 2_654_435_761) % 2**31).double()
            for row, (mine, others) in enumerate(pairs):
                lacks, has = groups[:, others], groups[:, mine]
                found[row].add(reads[lacks, row], index[lacks], x[lacks])
                if number == 0:
                    own[row].add(drawn[has], index[has], x[has])
        for known, top in zip(hardest, found, strict=True):
            _, numbers, x = top.kept
            known.update(zip(numbers.tolist(), x, strict=True))
        fitted = _again(fitted, own, hardest, whole)
    return fitted


def _again(
    fitted: Fitted, own: list[Top], hardest: list[dict[int, Tensor]], whole: Tensor
) -> Fitted:
    read, bias, write = [], [], []
    for mine, known in zip(own, hardest, strict=True):
        p, m = mine.kept[2].double(), torch.stack(list(known.values())).double()
        spread = torch.cat([p - p.mean(0), m - m.mean(0)])
        within = spread.T @ spread / len(spread)
        apart = p.mean(0) - m.mean(0)
        w = torch.linalg.solve((1 - WHOLE) * within + WHOLE * whole, apart)
        w = w / (w @ apart)
        read.append(w)
        bias.append(-(w @ m.mean(0)))
        write.append(apart)
    return replace(
        fitted,
        read=torch.stack(read, 1),
        bias=torch.stack(bias),
        write=torch.stack(write),
    )
