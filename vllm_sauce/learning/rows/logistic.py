# SPDX-License-Identifier: Apache-2.0
"""Rows of samples, read by logistic regression of their tokens.

A discriminant is right where tokens with a concept and without it are spread alike. Its
covariance is that of all tokens, most of which lack the concept: how those that have it
differ from each other counts for little, and the gate leaves some of them unedited.

A regression takes each token for what its sample shows. Where many show nothing of it,
as behind a decoder layer, each is an error to learn from; means do not mind.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from vllm_sauce.learning.rows.fit import Chunks, Fitted, GroupMoments, Pairs

ITERATIONS = 20
RIDGE = 0.03
"""Of a read's squared length, among tokens of covariance 1. The larger it is, the more
the read is the discriminant; of what was tried the one that is not worse than that for
few samples."""
EACH = 0.9
"""Share of a concept's tokens, mean over concepts, that the discriminant must take for
it (read at least halfway from those without it): each says what its sample shows."""


def told_by_logits(
    fitted: Fitted, pairs: Pairs, found: GroupMoments, whole: Tensor, chunks: Chunks
) -> Fitted:
    """Return rows that read what tells each pair's tokens apart, and write as before.

    Both sides of a pair count the same, however many tokens they have. L-BFGS from the
    discriminant, among tokens whose covariance is taken out; each step goes through the
    harvest once or twice. Rows are returned as they came where too few of the tokens
    that have a concept show it (``EACH``).

    Shapes: whole, the covariance of all tokens [d_model, d_model] float64
    """
    has, lacks = (torch.tensor(side) for side in zip(*pairs, strict=True))
    shown = torch.zeros(len(pairs))
    for _, x, groups in chunks():
        z = x @ fitted.read.float() + fitted.bias.float()
        shown += (groups[:, has] & (z > 0.5)).sum(0)
    if float((shown / found.tokens[has]).mean()) < EACH:
        return fitted
    root = torch.linalg.cholesky(whole)
    apart = found.means[has] - found.means[lacks]
    each = 1 / torch.stack([found.tokens[has], found.tokens[lacks]]).float()
    # As if both sides were normal, and spread alike.
    steep = (torch.linalg.solve(whole, apart.T) * apart.T).sum(0)
    offset = fitted.bias + found.mean @ fitted.read - 0.5
    logits = torch.cat([root.T @ fitted.read, offset[None]]) * steep
    logits.requires_grad_()
    search = torch.optim.LBFGS(
        [logits], max_iter=ITERATIONS, line_search_fn="strong_wolfe"
    )

    @torch.no_grad()
    def loss() -> Tensor:
        steps = logits[:-1]
        read = torch.linalg.solve_triangular(root.T, steps, upper=True)
        slope, total = torch.zeros_like(logits), RIDGE * steps.square().sum()
        for _, x, groups in chunks():
            x = x - found.mean.float()
            yes = groups[:, has]
            share = yes * each[0] + groups[:, lacks] * each[1]
            z = x @ read.float() + logits[-1].float()
            total += (share * softplus(torch.where(yes, -z, z))).sum()
            off = share * (z.sigmoid() - yes.float())
            slope += torch.cat([x.T @ off, off.sum(0)[None]])
        steepest = torch.linalg.solve_triangular(root, slope[:-1], upper=False)
        logits.grad = torch.cat([steepest + 2 * RIDGE * steps, slope[-1:]])
        return total

    search.step(loss)
    read = torch.linalg.solve_triangular(root.T, logits.detach()[:-1], upper=True)
    read = read / (read * apart.T).sum(0)
    return replace(fitted, read=read, bias=-(read * found.means[lacks].T).sum(0))
