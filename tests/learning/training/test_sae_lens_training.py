# SPDX-License-Identifier: Apache-2.0
"""All architectures learn a known dictionary, and are saved as what they were."""

from itertools import islice

import pytest
import torch

from tests.activations.harvests import sparse_data
from vllm_sauce.activations.statistics import ActivationStatistics
from vllm_sauce.errors import ConfigError, TrainingError
from vllm_sauce.learning.training.sae_lens_training import TrainingRun
from vllm_sauce.learning.training.settings import TRAINED_ARCHITECTURES, SAETraining
from vllm_sauce.sae import from_sae_lens
from vllm_sauce.sae.quality import sae_quality

pytest.importorskip("sae_lens")
ALL = list(TRAINED_ARCHITECTURES)


def shuffled_batches(activations, batch_tokens, seed):
    """Yield batches of rows forever, reshuffled every epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for rows in order.split(batch_tokens):
            if len(rows) == batch_tokens:
                yield activations[rows]


def train_sae(activations, training):
    """Train on rows in memory, to the end, scale folded in."""
    batches = shuffled_batches(activations, training.batch_tokens, training.seed)
    run = TrainingRun(training, ActivationStatistics.of(activations))
    for batch in islice(batches, training.total_steps):
        run.step(batch)
    run.figures()
    run.fold()
    return run.weights()


def settings(architecture, **overrides):
    return SAETraining(
        **{
            "d_sae": 64,
            "architecture": architecture,
            "l1_coefficient": 0.3,
            "k": 4,
            "training_tokens": 80_000,
            "batch_tokens": 256,
            "learning_rate": 2e-3,
            **overrides,
        }
    )


def learned(architecture, steps):
    """Return a run that has learned from some batches, and rows it has not seen."""
    data, _ = sparse_data(2000)
    training = settings(architecture, training_tokens=256 * max(steps, 1))
    run = TrainingRun(training, ActivationStatistics.of(data[:1500]))
    batches = shuffled_batches(data[:1500], 256, 0)
    for _ in range(steps):
        run.step(next(batches))
    return run, data[1500:]


@pytest.mark.parametrize("architecture", ALL)
def test_it_learns_sparse_data(architecture):
    """It explains rows it has not seen, and finds directions an untrained one lacks."""
    data, directions = sparse_data(6000)
    sae = train_sae(data[:5000], settings(architecture))
    quality = sae_quality(sae, data[5000:])
    assert quality.explained_variance > 0.7
    assert quality.l0 < 12
    untrained, _ = learned(architecture, 0)
    untrained._trainer.n_frac_active_samples = 1
    untrained.fold()
    before = sae_quality(untrained.weights(), data[5000:])
    assert before.explained_variance < quality.explained_variance - 0.2

    def found(weights):
        unit = torch.nn.functional.normalize(directions, dim=1)
        return float((unit @ weights.W_dec.T).max(dim=1).values.mean())

    assert found(sae) > found(untrained.weights()) + 0.1
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(64), atol=1e-5)


@pytest.mark.parametrize("architecture", ALL)
def test_what_is_saved_decodes_as_in_training(architecture, tmp_path):
    """SAELens' own classes are the oracle: scaled in training, raw when loaded."""
    from sae_lens.saes.sae import SAE

    run, x = learned(architecture, 30)
    scale = run._trainer.activation_scaler.scaling_factor
    with torch.no_grad():
        acts = run.sae.encode(x * scale)
        if architecture in ("batchtopk", "matryoshka"):
            # At inference the batch's k-th value is a threshold, learned meanwhile.
            _, hidden_pre = run.sae.encode_with_hidden_pre(x * scale)
            acts = hidden_pre * (hidden_pre > run.sae.topk_threshold)
        want = run.sae.decode(acts) / scale
    assert 0 < acts.count_nonzero() < acts.numel() / 2
    run.fold()
    run.write(tmp_path, {"hook_name": "decoder.1"})
    theirs = SAE.load_from_disk(tmp_path)
    torch.testing.assert_close(theirs(x), want, atol=1e-3, rtol=1e-4)
    ours = from_sae_lens(tmp_path)
    torch.testing.assert_close(ours.encode(x), theirs.encode(x), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(ours.decode(ours.encode(x)), theirs(x))
    assert theirs.cfg.metadata.hook_name == "decoder.1"
    assert theirs.cfg.metadata.training_architecture.startswith(architecture)
    assert torch.allclose(theirs.W_dec.norm(dim=1), torch.ones(64), atol=1e-5)


def test_a_checkpoint_brings_everything_back(tmp_path):
    data, _ = sparse_data(2000)
    batches = list(data.split(250))
    runs = []
    for _ in range(2):
        training = settings("topk", training_tokens=250 * 8, batch_tokens=250)
        runs.append(TrainingRun(training, ActivationStatistics.of(data)))
    for batch in batches[:5]:
        runs[0].step(batch)
    runs[0].save(tmp_path)
    runs[1].load(tmp_path)
    for run in runs:
        assert run.steps_done == 5
        for batch in batches[5:]:
            run.step(batch)
        assert run.finished
    assert runs[0].figures() == runs[1].figures()
    for name, tensor in runs[0].sae.state_dict().items():
        assert torch.equal(tensor, runs[1].sae.state_dict()[name]), name


def test_the_seed_decides_and_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, _ = learned("standard", 0)
    b, _ = learned("standard", 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.sae.W_dec, b.sae.W_dec)
    data, _ = sparse_data(2000)
    other = TrainingRun(settings("standard", seed=1), ActivationStatistics.of(data))
    assert not torch.equal(a.sae.W_dec, other.sae.W_dec)


@pytest.mark.parametrize("architecture", ALL)
def test_the_decoder_begins_at_the_norm_it_is_given(architecture):
    data, _ = sparse_data(600)
    statistics = ActivationStatistics.of(data)
    run = TrainingRun(settings(architecture, decoder_init_norm=0.5), statistics)
    norms = run.sae.W_dec.norm(dim=1)
    torch.testing.assert_close(norms, torch.full_like(norms, 0.5))
    assert torch.equal(run.sae.W_enc, run.sae.W_dec.T)


def test_a_latent_is_dead_after_the_steps_it_is_given():
    """One latent of 64 a token, four tokens a step: most do not fire in two steps."""
    data, _ = sparse_data(600)

    def dead(dead_steps):
        run = TrainingRun(
            settings(
                "topk",
                k=1,
                batch_tokens=4,
                training_tokens=400,
                dead_steps=dead_steps,
            ),
            ActivationStatistics.of(data),
        )
        for batch in data.split(4)[:5]:
            run.step(batch)
        return run.dead_latents

    # In five steps of four rows at most 20 have fired, in the last three 12.
    assert dead(4) >= 64 - 20
    assert dead(2) >= 64 - 12
    assert dead(5) == dead(None) == 0


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("topk", "aux_coefficient"),
        ("batchtopk", "aux_coefficient"),
        ("matryoshka", "aux_coefficient"),
        ("jumprelu", "pre_act_coefficient"),
    ],
)
def test_what_revives_latents_acts_on_dead_ones_alone(architecture, name):
    """Without weight it leaves the dead as they were; with it they move."""
    data, _ = sparse_data(600)

    def encoder(weight):
        run = TrainingRun(
            settings(architecture, dead_steps=1, **{name: weight}),
            ActivationStatistics.of(data),
        )
        run._trainer.n_forward_passes_since_fired += 10
        run.step(data[:256])
        return run.sae.W_enc.detach().clone()

    assert not torch.equal(encoder(0.0), encoder(1.0))


def test_a_training_that_diverges_is_stopped():
    data, _ = sparse_data(600)
    run = TrainingRun(
        settings("standard", learning_rate=1e30), ActivationStatistics.of(data)
    )
    with pytest.raises(TrainingError, match="lower the learning rate"):
        for batch in data.split(100):
            run.step(batch)
            run.figures()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"architecture": "transcoder"}, "is one of standard, .* 'transcoder'"),
        ({"architecture": "topk", "k": 65}, "at most d_sae=64, got 65"),
        ({"architecture": "batchtopk", "k": 0}, "above 0"),
        ({"architecture": "topk", "k": 2.5}, "whole number"),
        ({"d_sae": 0}, "d_sae must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"l1_coefficient": -1.0}, "not be below 0"),
        ({"aux_coefficient": -0.1}, "aux_coefficient must not be below 0"),
        ({"aux_coefficient": float("inf")}, "aux_coefficient must not"),
        ({"pre_act_coefficient": float("nan")}, "pre_act_coefficient must not"),
        ({"l0_coefficient": -1.0}, "l0_coefficient must not be below 0"),
        ({"decoder_init_norm": 0.0}, "decoder_init_norm must be above 0"),
        ({"dead_steps": 0}, "dead_steps must be above 0"),
        # 80,000 rows in batches of 256.
        ({"dead_steps": 312}, "below the 312 steps of this training"),
        ({"training_tokens": 100}, "at least one batch of 256, got 100"),
        ({"matryoshka_widths": (32, 16, 64)}, "must rise to d_sae=64"),
        ({"matryoshka_widths": (16, 32)}, "must rise to d_sae=64"),
    ],
)
def test_settings_that_make_no_sense(overrides, message):
    with pytest.raises(ConfigError, match=message):
        settings(**{"architecture": "standard", **overrides})


def test_matryoshka_levels_rise_to_the_whole():
    assert settings("matryoshka").widths == (8, 16, 32, 64)
    assert settings("matryoshka", d_sae=4, k=1).widths == (1, 2, 4)
    assert settings("matryoshka", matryoshka_widths=(3, 64)).widths == (3, 64)


def test_a_device_that_is_not_here_is_named():
    data, _ = sparse_data(600)
    with pytest.raises(ConfigError, match="no device 'cuda:77'"):
        TrainingRun(
            settings("standard", device="cuda:77"), ActivationStatistics.of(data)
        )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", ALL)
def test_a_gpu_learns_what_a_cpu_learns(architecture):
    data, _ = sparse_data(6000)
    figures = {
        device: sae_quality(
            train_sae(data[:5000], settings(architecture, device=device)), data[5000:]
        )
        for device in ("cpu", "cuda")
    }
    assert figures["cuda"].explained_variance == pytest.approx(
        figures["cpu"].explained_variance, abs=0.03
    )
    assert figures["cuda"].l0 == pytest.approx(figures["cpu"].l0, rel=0.1)
