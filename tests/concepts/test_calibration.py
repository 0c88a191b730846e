# SPDX-License-Identifier: Apache-2.0
"""Calibration on toys whose best answer is known."""

import pytest
import torch

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.concepts.calibration import coordinate_search, gate_levels, prune
from vllm_sauce.concepts.selection import share_difference, top_latents
from vllm_sauce.errors import ConfigError

GRID = {"k": (1, 2, 4), "gamma": (-1.0, 0.0, 1.0)}


def test_search_finds_the_peak_and_tries_nothing_twice():
    tried = []

    def evaluate(point):
        tried.append((point["k"], point["gamma"]))
        return -abs(point["k"] - 4) - abs(point["gamma"])

    trials = coordinate_search(GRID, {"k": 1, "gamma": 1.0}, evaluate)
    assert trials[0].setting == (("k", 4), ("gamma", 0.0))
    assert trials[0].value("k") == 4
    assert trials[0].score == 0
    assert len(tried) == len(set(tried)) == len(trials)
    assert [t.score for t in trials] == sorted((t.score for t in trials), reverse=True)


def test_search_stays_where_everything_ties():
    start = {"k": 2, "gamma": 0.0}
    trials = coordinate_search(GRID, start, lambda point: 1.0)
    assert dict(trials[0].setting) == start


def test_search_refuses_a_start_off_the_grid():
    with pytest.raises(ConfigError, match="no point of the grid"):
        coordinate_search(GRID, {"k": 3, "gamma": 0.0}, lambda point: 0.0)


def test_gates_are_what_a_share_of_tokens_stays_below():
    acts = torch.stack([torch.arange(100.0), -torch.arange(100.0)], dim=1)
    gates = gate_levels(acts, 0.9)
    assert gates.tolist() == [90.0, 0.0]
    assert float((acts[:, 0] < gates[0]).float().mean()) == pytest.approx(0.9)
    assert gate_levels(acts, 0.0).tolist() == [0.0, 0.0]
    with pytest.raises(ConfigError):
        gate_levels(acts, 1.1)


def test_selection_and_pruning_find_the_concepts_latents():
    """Latents 5 and 6 carry the concept; 7 comes with it but carries another one."""
    generator = torch.Generator().manual_seed(0)
    shown = torch.rand(400, generator=generator) < 0.5
    acts = torch.rand(400, 10, generator=generator)
    acts[:, 5:8] *= shown[:, None]
    scores = share_difference(acts[shown].mean(0), acts[~shown].mean(0))
    latents = top_latents(scores, 4)
    assert {5, 6, 7} < set(latents)

    def evaluate(edit):
        left = acts.clone()
        left[:, list(edit.latents)] = 0
        concept, other = left[:, 5] + left[:, 6], left[:, 7] + left[:, 0]
        forgotten = (concept[shown] < 0.2).float().mean()
        kept = (other - acts[:, 7] - acts[:, 0]).abs().mean()
        return float(forgotten - kept)

    edit = SiteEdit.uniform(latents)
    pruned, score = prune(edit, evaluate, evaluate(edit))
    assert set(pruned.latents) == {5, 6}
    assert score > evaluate(edit)


def test_pruning_never_removes_the_last_latent():
    edit = SiteEdit.uniform([1, 2, 3])
    pruned, _ = prune(edit, lambda smaller: 1.0, 0.0, chunks=3)
    assert len(pruned.latents) == 1
