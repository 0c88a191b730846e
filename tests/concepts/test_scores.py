# SPDX-License-Identifier: Apache-2.0
"""Streamed statistics and the scores made of them, against the papers' formulas."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_sauce.concepts import scores
from vllm_sauce.concepts.scores import SCORES, CausalScore, ranked
from vllm_sauce.concepts.statistics import LatentStatistics
from vllm_sauce.errors import ConfigError

D_SAE = 40


def draw(seed, sparsity=0.6):
    """Latents of ten samples of unequal lengths; the first four have the concept."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (10,), generator=rng)
    sample = torch.arange(10).repeat_interleave(lengths)
    acts = torch.rand(len(sample), D_SAE, generator=rng) * 3
    acts[torch.rand(acts.shape, generator=rng) < sparsity] = 0
    acts[:, [3, 17]] = 0  # dead
    groups = torch.zeros(10, 2, dtype=torch.bool)
    groups[:4, 0] = True
    groups[4:, 1] = True
    return acts, sample, groups


def counted(acts, sample, groups):
    found = LatentStatistics(groups.shape[1], acts.shape[1])
    found.add(acts, sample, groups)
    return found


def both(seed):
    acts, sample, groups = draw(seed)
    found = counted(acts, sample, groups)
    with_it = acts[groups[sample, 0]]
    without = acts[groups[sample, 1]]
    return found.group(0), found.group(1), with_it.tolist(), without.tolist()


def mean(rows, i, of=lambda z: z):
    return sum(of(row[i]) for row in rows) / len(rows)


def literal_share(pos, neg, i, delta=1e-8):
    top = sum(mean(pos, j) for j in range(D_SAE)) + delta
    bottom = sum(mean(neg, j) for j in range(D_SAE)) + delta
    return mean(pos, i) / top - mean(neg, i) / bottom


def literal_percentile(values, percentile):
    values = sorted(values)
    place = percentile / 100 * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def literal_saeuron(pos, neg):
    values = [literal_share(pos, neg, i) for i in range(D_SAE)]
    border = literal_percentile(values, 99.0)
    return [value if value > border else -math.inf for value in values]


def literal_crisp(pos, neg, k=16):
    scale = len(pos) / len(neg)
    frequency, chosen = {}, []
    for i in range(D_SAE):
        fired = sum(row[i] > 0 for row in pos) - scale * sum(row[i] > 0 for row in neg)
        frequency[i] = fired
    for i in sorted(frequency, key=lambda i: -frequency[i])[: 10 * k]:
        target = sum(row[i] for row in pos)
        retain = scale * sum(row[i] for row in neg)
        if target / (retain + 1) >= 3:
            chosen.append(i)
    return [frequency[i] if i in chosen else -math.inf for i in range(D_SAE)]


def literal_dsg(pos, neg):
    forget = [mean(pos, i, lambda z: z * z) for i in range(D_SAE)]
    retain = [mean(neg, i, lambda z: z * z) for i in range(D_SAE)]
    ratio = [f / (r + 1e-21) for f, r in zip(forget, retain, strict=True)]
    border = literal_percentile(ratio, 90.0)
    return [f if r >= border else -math.inf for f, r in zip(forget, ratio, strict=True)]


def literal_rate(pos, neg):
    return [
        mean(pos, i, lambda z: z > 0) - mean(neg, i, lambda z: z > 0)
        for i in range(D_SAE)
    ]


LITERAL = {
    "share": lambda p, n: [literal_share(p, n, i) for i in range(D_SAE)],
    "saeuron": literal_saeuron,
    "crisp": literal_crisp,
    "dsg": literal_dsg,
    "rate": literal_rate,
}


@pytest.mark.parametrize("name", SCORES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_a_score_is_its_papers_formula(name, seed):
    pos, neg, with_it, without = both(seed)
    want = torch.tensor(LITERAL[name](with_it, without)).double()
    got = SCORES[name](pos, neg).double()
    assert torch.equal(got == -math.inf, want == -math.inf)
    finite = want > -math.inf
    assert torch.allclose(got[finite], want[finite], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", SCORES)
@given(seed=st.integers(0, 10**6), latent=st.integers(4, 16))
@settings(max_examples=8, deadline=None)
def test_the_latent_of_the_concept_ranks_first(name, seed, latent):
    """It fires strongly, wherever the concept is and nowhere else."""
    acts, sample, groups = draw(seed)
    acts[:, latent] = groups[sample, 0].float() * 20
    found = counted(acts, sample, groups)
    pos, neg = found.group(0), found.group(1)
    assert ranked(SCORES[name](pos, neg), pos, 3)[0] == latent


@pytest.mark.parametrize("name", SCORES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_dead_latents_are_never_chosen(name, seed):
    pos, neg, _, _ = both(seed)
    chosen = ranked(SCORES[name](pos, neg), pos, D_SAE)
    assert not {3, 17} & set(chosen)
    assert len(set(chosen)) == len(chosen)


@pytest.mark.parametrize("name", SCORES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_renumbering_latents_renumbers_scores(name, seed):
    acts, sample, groups = draw(seed)
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(seed))
    one, two = counted(acts, sample, groups), counted(acts[:, order], sample, groups)
    before = SCORES[name](one.group(0), one.group(1))
    after = SCORES[name](two.group(0), two.group(1))
    # S(i) is in float32, where the order of a sum is seen.
    assert torch.allclose(before[order], after, rtol=1e-4, atol=1e-7)


def test_silent_latents_have_no_share():
    silent = counted(torch.zeros(2, 3), torch.arange(2), torch.ones(2, 1).bool())
    assert scores.share(silent.group(0), silent.group(0)).tolist() == [0, 0, 0]


def test_crisp_looks_at_ten_times_k_candidates():
    """A latent that fires much stronger but hardly more often is no candidate."""
    acts, sample, groups = torch.zeros(20, D_SAE), torch.arange(20), None
    groups = torch.stack([torch.arange(20) < 10, torch.arange(20) >= 10], 1)
    acts[:10, :11] = 1.0
    acts[0, 11] = 100.0
    found = counted(acts, sample, groups)
    pos, neg = found.group(0), found.group(1)
    assert float(scores.crisp(pos, neg, k=1)[11]) == -math.inf
    assert float(scores.crisp(pos, neg, k=2)[11]) == 1.0


@given(seed=st.integers(0, 10**6), cuts=st.sets(st.integers(1, 9), max_size=4))
@settings(max_examples=15, deadline=None)
def test_parts_add_up_to_the_whole(seed, cuts):
    acts, sample, groups = draw(seed)
    groups[2] = True  # a sample in both groups
    groups[7] = False  # and one in none
    whole, parts = counted(acts, sample, groups), LatentStatistics(2, D_SAE)
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), 10], strict=True):
        rows = (sample >= start) & (sample < stop)
        parts.add(acts[rows], sample[rows] - start, groups[start:stop])
    for index in (0, 1):
        one, two = whole.group(index), parts.group(index)
        for name in ("mean_acts", "mean_squared", "firing_rate"):
            assert torch.allclose(getattr(one, name), getattr(two, name))
        assert torch.equal(one.max_acts, two.max_acts)
        assert (one.num_tokens, one.num_samples) == (two.num_tokens, two.num_samples)


def test_what_cannot_be_counted_is_refused():
    acts, sample, groups = draw(0)
    found = LatentStatistics(2, D_SAE)
    with pytest.raises(ConfigError, match="no token was counted for group 1"):
        found.group(1)
    with pytest.raises(ConfigError, match="latent_acts must be"):
        found.add(acts[:, :5], sample, groups)
    found.add(acts, sample, groups)
    pos = found.group(0)
    with pytest.raises(ConfigError, match="with 1 NaN"):
        ranked(torch.tensor([float("nan")] + [0.0] * (D_SAE - 1)), pos, 3)
    with pytest.raises(ConfigError, match="k must be"):
        ranked(torch.zeros(D_SAE), pos, 0)


def test_a_causal_score_weighs_harm_and_ignores_gain():
    assert CausalScore(1, -3.0, 0.5).value() == 3.0
    assert CausalScore(1, -3.0, -0.5).value() == 2.5
