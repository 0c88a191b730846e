# SPDX-License-Identifier: Apache-2.0
"""Statistics over a harvest: whose rows count, and how they are cut into batches."""

import pytest
import torch
from PIL import Image

from tests.activations.harvests import begin_harvest, labelled_store
from vllm_sauce.activations.shard_writer import ShardWriter
from vllm_sauce.activations.shards import Role, Rows, SiteFormat
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.errors import ActivationsError, ConfigError
from vllm_sauce.learning.selection import latent_statistics
from vllm_sauce.learning.selection.latent_statistics import (
    concept_statistics,
    counted_rows,
    quiet_levels,
    sample_groups,
)
from vllm_sauce.sae import SAEWeights

D = 6
SITE = SiteFormat(d_model=D, dtype="float32")


@pytest.fixture(scope="module")
def sae():
    """Every latent is one column of the activation."""
    eye = torch.eye(D)
    return SAEWeights(W_enc=eye, W_dec=eye, b_enc=torch.zeros(D), b_dec=torch.zeros(D))


@pytest.fixture
def file(tmp_path):
    """Two concepts' pictures, each asked two things; picture 20 has both."""
    for folder, numbers in (("a", range(0, 24)), ("b", range(20, 44))):
        (tmp_path / folder).mkdir()
        for number in numbers:
            image = Image.new("RGB", (1, 1), (number, 0, 0))
            image.save(tmp_path / folder / f"{number:02d}.png")
    (tmp_path / "concepts.yaml").write_text(
        "version: 1\nminimum: 1\ndefaults: {prompts: ['One?', 'Two?']}\n"
        "concepts: {a: {positive: a}, b: {positive: b}}\n"
    )
    return ConceptFile.read(tmp_path / "concepts.yaml")


def harvest(folder, samples, rows_of, shard_tokens=37):
    """Write a harvest of both sites; a picture's patches only for its first sample."""
    lines = [sample.to_json() for sample in samples]
    begin_harvest(folder, lines, dict.fromkeys(("vision", "decoder.1"), SITE))
    writer = ShardWriter.open(folder, "w0", shard_tokens=shard_tokens)
    seen = set()
    for number, line in enumerate(lines):
        rows = {"decoder.1": rows_of(number, "decoder.1")}
        if line["picture"] not in seen:
            seen.add(line["picture"])
            rows["vision"] = rows_of(number, "vision")
        writer.add(number, rows)
    writer.flush()
    return folder


def rows_of(number, site):
    """As many tokens as the number says; two are text at the decoder, one the sink."""
    count = number % 5 + 2
    rng = torch.Generator().manual_seed(number + 1000 * (site == "vision"))
    role = torch.full((count,), Role.IMAGE, dtype=torch.uint8)
    if site != "vision":
        role[:2] = Role.TEXT
    return Rows(
        torch.randn(count, D, generator=rng),
        torch.full((count,), number, dtype=torch.int32),
        torch.arange(count, dtype=torch.int32),
        role,
        torch.arange(count, dtype=torch.int32) + 100 * number,
    )


@pytest.mark.parametrize("site", ["vision", "decoder.1"])
@pytest.mark.parametrize("split", [None, "selection"])
@pytest.mark.parametrize("batch", [1, 64 * D, 10**9])
def test_statistics_are_those_of_all_rows_at_once(
    tmp_path, file, sae, site, split, batch, monkeypatch
):
    monkeypatch.setattr(latent_statistics, "BATCH_BYTES", batch)
    samples = file.samples()
    store = ActivationStore.open(harvest(tmp_path / "h", samples, rows_of), site)
    concepts = tuple(file.concepts.values())
    groups = sample_groups(store.samples(), concepts, split, site)
    found = concept_statistics(sae, store, groups)
    first: dict[object, int] = {}
    for number, sample in enumerate(samples):
        first.setdefault(sample.to_json()["picture"], number)
    for column, (concept, present) in enumerate(
        (concept, present) for concept in concepts for present in (True, False)
    ):
        keys = {s.key for e in concept.examples(present, split) for s in e.samples()}
        numbers = [i for i, sample in enumerate(samples) if sample.key in keys]
        if site == "vision":
            numbers = sorted({first[samples[i].to_json()["picture"]] for i in numbers})
        sink = int(site != "vision")
        acts = torch.cat([rows_of(i, site).activations[sink:] for i in numbers])
        acts = acts.clamp_min(0)
        group = found.group(column)
        assert (group.num_tokens, group.num_samples) == (len(acts), len(numbers))
        assert torch.allclose(group.mean_acts, acts.double().mean(0))
        assert torch.allclose(group.firing_rate, (acts > 0).double().mean(0))
        assert torch.equal(group.max_acts, acts.amax(0))


def test_only_the_roles_asked_for_count(tmp_path, file, sae):
    samples = file.samples()
    folder = harvest(tmp_path / "h", samples, rows_of)
    store = ActivationStore.open(folder, "decoder.1")
    concepts = tuple(file.concepts.values())
    groups = sample_groups(store.samples(), concepts, None, "decoder.1")
    seen = []
    found = concept_statistics(
        sae, store, groups, roles=[Role.TEXT], progress=lambda *at: seen.append(at)
    )
    group = found.group(0)
    assert group.num_tokens == group.num_samples == 48
    assert seen[-1] == (len(samples), len(samples))


@pytest.mark.parametrize("batch", [1, 10**9])
def test_a_share_of_the_tokens_without_a_concept_stays_below_a_level(
    tmp_path, file, sae, batch, monkeypatch
):
    monkeypatch.setattr(latent_statistics, "BATCH_BYTES", batch)
    samples = file.samples()
    store = ActivationStore.open(harvest(tmp_path / "h", samples, rows_of), "decoder.1")
    concepts = tuple(file.concepts.values())
    groups = sample_groups(store.samples(), concepts, None, "decoder.1")
    chosen, shares = ((4, 1), (), (0,)), (0.5, 0.9, 1.0)
    found = quiet_levels(
        sae, store, torch.cat([groups, groups[:, :2]], 1), chosen, shares
    )
    assert [tuple(one.shape) for one in found] == [(3, 2), (3, 0), (3, 1)]
    counted = concept_statistics(sae, store, groups).group(1)
    without = {s.key for e in concepts[0].examples(False) for s in e.samples()}
    acts = torch.cat(
        [
            rows_of(i, "").activations[1:]
            for i, s in enumerate(samples)
            if s.key in without
        ]
    ).clamp_min(0)
    for latent, levels in zip(chosen[0], found[0].T, strict=True):
        for share, level in zip(shares, levels, strict=True):
            below = (acts[:, latent] <= level).double().mean()
            assert share <= below < share + 1.5 / len(acts) or level == 0
    assert torch.equal(found[0][-1], counted.max_acts[list(chosen[0])])


def test_levels_are_read_from_a_bounded_number_of_tokens(
    tmp_path, file, sae, monkeypatch
):
    """Of every fourth token or so, a level is still one that many stay below."""
    samples = file.samples()
    store = ActivationStore.open(harvest(tmp_path / "h", samples, rows_of), "decoder.1")
    groups = sample_groups(
        store.samples(), tuple(file.concepts.values()), None, "decoder.1"
    )
    whole, _ = quiet_levels(sae, store, groups, ((0, 1), (2,)), (0.8,))
    monkeypatch.setattr(latent_statistics, "LEVEL_TOKENS", 100)
    part, _ = quiet_levels(sae, store, groups, ((0, 1), (2,)), (0.8,))
    assert not torch.equal(whole, part)
    assert (whole - part).abs().max() < 0.5
    monkeypatch.setattr(latent_statistics, "LEVEL_TOKENS", 1)
    none, one = quiet_levels(sae, store, groups, ((0, 1), (2,)), (0.8,))
    assert none.eq(0).all() or one.eq(0).all()  # a lone token is of one concept


def test_a_harvest_of_something_else_is_refused(tmp_path, file, sae):
    half = [s for s in file.samples() if s.key.startswith("b/")]
    store = ActivationStore.open(harvest(tmp_path / "h", half, rows_of), "decoder.1")
    concepts = tuple(file.concepts.values())
    with pytest.raises(ActivationsError, match="none of the .* samples with 'a'"):
        sample_groups(store.samples(), concepts, None, "decoder.1")
    wide = torch.eye(D + 1)
    other = SAEWeights(
        W_enc=wide, W_dec=wide, b_enc=torch.zeros(D + 1), b_dec=torch.zeros(D + 1)
    )
    groups = torch.ones(len(half), 2, dtype=torch.bool)
    with pytest.raises(ConfigError, match="width 7.* holds decoder.1 of width 6"):
        concept_statistics(other, store, groups)


def test_a_template_counts_for_gates_alone(tmp_path):
    """What all prompts say alike behind a picture counts; the sink never does."""
    samples = [("ttitt", [1, 8, 9, 4, 6]), ("ttit", [1, 8, 9, 4])]
    store = labelled_store(tmp_path, samples)
    groups = torch.tensor([[True, False], [False, True]])
    kept = [1.0, 2.0, 3.0, 4.0, 11.0, 12.0, 13.0]
    for skip, rows in ((None, kept), (2, [x for x in kept if x % 10 > 1])):
        index, sample = counted_rows(store, groups, tuple(Role), skip)
        assert store.rows(index).flatten().tolist() == rows
        assert sample.tolist() == [int(x >= 10) for x in rows]
    # The first latent grows towards a sample's beginning, the second away from it.
    sae = SAEWeights(
        W_enc=torch.tensor([[-1.0, 1.0]]),
        W_dec=torch.ones(2, 1),
        b_enc=torch.tensor([5.0, 0.0]),
        b_dec=torch.zeros(1),
    )
    found = concept_statistics(sae, store, groups)
    assert found.num_tokens.tolist() == [3, 2]
    first = found.group(0)
    assert first.mean_acts.tolist() == [2.0, 3.0]
    assert first.max_acts.tolist() == [4.0, 4.0]
    texts = concept_statistics(sae, store, groups, roles=(Role.IMAGE,))
    assert texts.group(0).max_acts.tolist() == [3.0, 2.0]
