# SPDX-License-Identifier: Apache-2.0
"""Simple linear edits to compare with, as rows on the op that ours run on.

Each takes away what a token has of one direction, whichever side of a point it is on:
``x' = x - (r (x - a)) u``. A latent has one side, so an edit is two rows, the second
reading and writing the opposite.

- ``difference``: u is the mean with the concept less the mean without it, r along u; a
  is the mean without. Source: Arditi et al. 2024, arXiv:2406.11717
- ``leace``: u as above, r along ``C^-1 u``; a is the mean of all. No linear read tells
  the concept afterwards, and nothing less is changed for it. Source: Belrose et al.
  2023, arXiv:2306.03819
- ``random``: u is drawn, r along u; a is the mean of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.data.concepts_yaml import ConceptExamples
from vllm_sauce.learning.rows.fit import Fitted, GroupMoments
from vllm_sauce.learning.rows.groups import Group
from vllm_sauce.learning.rows.settings import DIFFERENCE, LEACE, RANDOM


def baseline(kind: str, fitted: Fitted, found: GroupMoments, told: Group) -> Fitted:
    """Return an edit's two rows a concept: all of the first, then their opposites.

    ``fitted``: a row for each that ``told`` tells from others.
    """
    apart = fitted.write
    around = found.mean.expand_as(apart)
    if kind == DIFFERENCE:
        around = found.means[[without for _, without in told.pairs]]
    elif kind == RANDOM:
        apart = torch.stack([_drawn(name, apart.shape[1]) for name in told.concepts])
    read = fitted.read
    if kind != LEACE:
        read = (apart / apart.square().sum(1, keepdim=True)).T
    bias = -(read * around.T).sum(0)
    return replace(
        fitted,
        read=torch.cat([read, -read], 1),
        bias=torch.cat([bias, -bias]),
        write=torch.cat([apart, -apart]),
        # Of the read that was tried.
        d_prime=fitted.d_prime.repeat(2) * (kind == LEACE),
    )


def _drawn(name: str, d_model: int) -> Tensor:
    """Return a direction that depends on the concept's name alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(d_model, dtype=torch.float64, generator=drawn)


def two_sided(site: str, concepts: Sequence[ConceptExamples]) -> Catalogue:
    """Return what is to be forgotten by two rows, all of what these read.

    None has been measured, so none is offered by a server that is not told to.
    """
    return Catalogue(
        Concept(
            name=one.name,
            domain=one.domain,
            forgotten=False,
            edits={site: SiteEdit.uniform([row, row + len(concepts)], gamma=0.0)},
        )
        for row, one in enumerate(concepts)
    )
