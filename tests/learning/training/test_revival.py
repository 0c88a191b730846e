# SPDX-License-Identifier: Apache-2.0
"""Dead latents learn what is left; the others stay what they are."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.activations.harvests import sparse_data
from tests.learning.training.test_sae_lens_training import settings as training_of
from tests.learning.training.test_sae_lens_training import shuffled_batches, train_sae
from vllm_sauce.activations.statistics import ActivationStatistics
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.training import revival
from vllm_sauce.learning.training.revival import HARDLY, firing_density
from vllm_sauce.sae import SAEWeights
from vllm_sauce.sae.quality import sae_quality

pytest.importorskip("sae_lens")
DATA = sparse_data(6000)[0]
SCALE = ActivationStatistics.of(DATA).scale
SETTINGS = training_of("standard", dead_steps=20, revival_steps=150)


def revive(sae, rows, settings=SETTINGS, scale=SCALE):
    return revival.revive(sae, rows, settings, scale)


def batches(seed=1):
    return shuffled_batches(DATA[:5000], 250, seed)


@pytest.fixture(scope="module")
def trained() -> SAEWeights:
    return train_sae(DATA[:5000], training_of("standard"))


def killed(sae: SAEWeights, count: int) -> tuple[SAEWeights, torch.Tensor]:
    """Return the SAE without its busiest latents, and which they were."""
    dead = firing_density(sae, batches(), 20).topk(count).indices.sort().values
    b_enc = sae.b_enc.clone()
    b_enc[dead] = -1e4
    return replace(sae, b_enc=b_enc), dead


def test_dead_latents_learn_what_was_lost_with_them(trained):
    sae, dead = killed(trained, 16)
    revived = revive(sae, batches())
    assert revived.dead_before >= 16 and revived.dead_after == 0
    density = firing_density(revived.weights, batches(), 20)
    assert (density[dead] >= HARDLY).all()
    assert (density[dead] < 0.5).all()
    rows = DATA[5000:]
    whole, less, back = (
        sae_quality(one, rows).explained_variance
        for one in (trained, sae, revived.weights)
    )
    assert less < whole - 0.1
    # One by one on what the rest left they cannot be what training together found.
    assert back > less + 0.5 * (whole - less)
    norms = revived.weights.W_dec.norm(dim=1)
    assert torch.allclose(norms, torch.ones_like(norms), atol=1e-5)


def rarely_firing(sae: SAEWeights, latent: int, rows: int) -> SAEWeights:
    """Return the SAE with a latent that fires on so many of the rows shown."""
    hidden_pre = DATA[:5000] - sae.b_dec
    strength = (hidden_pre @ sae.W_enc)[:, latent].sort(descending=True).values
    b_enc = sae.b_enc.clone()
    b_enc[latent] = -(strength[rows - 1] + strength[rows]) / 2
    return replace(sae, b_enc=b_enc)


def test_living_latents_stay_what_they_are_to_the_bit(trained):
    sae, dead = killed(trained, 8)
    rare = next(j for j in range(64) if j not in dead)
    sae = rarely_firing(sae, rare, 2)
    assert 0 < firing_density(sae, batches(), 20)[rare] < HARDLY
    before = {name: tensor.clone() for name, tensor in sae.tensors().items()}
    after = revive(sae, batches()).weights
    living = firing_density(sae, batches(), 20) > 0
    assert not living[dead].any() and living.sum() >= 40
    for name, tensor in sae.tensors().items():
        assert torch.equal(tensor, before[name]), f"{name} of the caller's SAE"
    assert torch.equal(after.W_enc[:, living], sae.W_enc[:, living])
    assert torch.equal(after.W_dec[living], sae.W_dec[living])
    assert torch.equal(after.b_enc[living], sae.b_enc[living])
    assert torch.equal(after.b_dec, sae.b_dec)
    x = DATA[5000:]
    torch.testing.assert_close(after.encode(x)[:, living], sae.encode(x)[:, living])


def test_who_hardly_fires_is_drawn_again_under_half_the_penalty(trained, monkeypatch):
    sae, dead = killed(trained, 8)
    settings = replace(SETTINGS, l1_coefficient=4.0, revival_steps=400)
    after = revive(sae, batches(), settings)
    assert after.dead_after == 0
    density = firing_density(after.weights, batches(), 20)[dead]
    assert (density >= HARDLY).sum() >= 6
    monkeypatch.setattr(revival, "ROUNDS", 1)
    assert revive(sae, batches(), settings).dead_after > 0


def test_who_is_drawn_again_is_not_missed_by_its_former_self(trained, monkeypatch):
    """Else each round would learn what the one before left, and then replace it."""
    sae, dead = killed(trained, 16)
    rows, explained = DATA[5000:], {}
    for hardly in (HARDLY, 1.1):
        monkeypatch.setattr(revival, "HARDLY", hardly)
        after = revive(sae, batches()).weights
        explained[hardly] = sae_quality(after, rows).explained_variance
    assert explained[1.1] > explained[HARDLY] - 0.02


def test_nothing_is_done_where_nothing_is_dead_or_no_step_is_given(trained):
    sae, _ = killed(trained, 3)
    idle = revive(sae, batches(), replace(SETTINGS, revival_steps=0))
    assert idle.weights is sae
    assert idle.dead_before == idle.dead_after >= 3
    # Half the latents of a square SAE fire on any row.
    turn = torch.linalg.qr(torch.randn(16, 16))[0]
    alive = replace(
        trained,
        W_enc=turn,
        W_dec=turn.T.contiguous(),
        b_enc=torch.zeros(16),
        b_dec=DATA.mean(0),
    )
    kept = revive(alive, batches())
    assert kept.weights is alive
    assert kept.dead_before == kept.dead_after == 0


def test_what_diverges_stays_dead(trained):
    sae, dead = killed(trained, 4)
    wild = revive(sae, batches(), replace(SETTINGS, learning_rate=1e30))
    assert wild.weights.finite()
    assert wild.dead_after == wild.dead_before
    density = firing_density(wild.weights, batches(), 20)
    assert (density[dead] == 0).all()


def test_the_unit_of_the_activations_does_not_matter(trained):
    """Ten times the activations: the same latents, ten times as strong."""
    sae, dead = killed(trained, 8)
    larger = replace(sae, b_enc=10 * sae.b_enc, b_dec=10 * sae.b_dec)
    tenfold = (10 * batch for batch in batches())
    want = revive(sae, batches()).weights
    got = revive(larger, tenfold, scale=SCALE / 10).weights
    close = partial(torch.testing.assert_close, atol=2e-3, rtol=2e-3)
    close(got.W_enc[:, dead], want.W_enc[:, dead])
    close(got.W_dec[dead], want.W_dec[dead])
    close(got.b_enc[dead], 10 * want.b_enc[dead])


def test_the_penalty_is_felt(trained):
    sae, dead = killed(trained, 8)
    l0 = []
    for penalty in (0.0, 3.0):
        settings = replace(SETTINGS, l1_coefficient=penalty)
        after = revive(sae, batches(), settings).weights
        l0.append(float(firing_density(after, batches(), 20)[dead].sum()))
    assert l0[1] < 0.7 * l0[0]


def test_a_seed_is_a_result(trained):
    sae, dead = killed(trained, 4)
    runs = [
        revive(sae, batches(), replace(SETTINGS, seed=seed)).weights
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0].W_dec, runs[1].W_dec)
    assert not torch.equal(runs[0].W_dec[dead], runs[2].W_dec[dead])


def test_how_many_steps_it_takes():
    long = training_of("standard", training_tokens=256 * 500)
    assert long.steps_of_revival == 50
    assert replace(long, revival_steps=7).steps_of_revival == 7
    assert replace(long, revival_steps=0).steps_of_revival == 0
    assert replace(long, architecture="topk").steps_of_revival == 0
    with pytest.raises(ConfigError, match="revival_steps must be at least 0, got -1"):
        replace(long, revival_steps=-1)
