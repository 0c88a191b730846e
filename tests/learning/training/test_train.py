# SPDX-License-Identifier: Apache-2.0
"""From a harvest's folder to an SAE's: killed, resumed, damaged, out of disk."""

import errno
import json
import signal
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.activations.harvests import SITE, sparse_data, write_harvest
from tests.copies import Copy
from tests.places import TINY_MODEL
from vllm_sauce import files
from vllm_sauce.activations.shards import read_harvest
from vllm_sauce.errors import ActivationsError, ConfigError, TrainingError
from vllm_sauce.learning.training import train as harvest_training
from vllm_sauce.learning.training.settings import (
    FidelitySettings,
    HarvestTraining,
    SAETraining,
)
from vllm_sauce.learning.training.train import check_model, train_on_harvest
from vllm_sauce.sae import from_sae_lens

pytest.importorskip("sae_lens")
STEPS = 24


@pytest.fixture(scope="module")
def harvest(tmp_path_factory):
    data, _ = sparse_data(3000)
    return write_harvest(tmp_path_factory.mktemp("harvest"), data)


def settings_of(harvest, folder):
    return HarvestTraining(
        harvest=harvest,
        site=SITE,
        out=folder / "sae",
        training=SAETraining(
            d_sae=48,
            architecture="batchtopk",
            k=4,
            training_tokens=STEPS * 200,
            batch_tokens=200,
            learning_rate=2e-3,
        ),
        fidelity=FidelitySettings(samples=0),
        held_out=0.2,
        buffer_mib=0.4,
        checkpoint_steps=5,
    )


@pytest.fixture
def settings(harvest, tmp_path):
    return settings_of(harvest, tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(harvest, tmp_path_factory):
    """The weights of the same training, done at once."""
    settings = settings_of(harvest, tmp_path_factory.mktemp("whole"))
    train_on_harvest(settings)
    return load_file(settings.out / "sae_weights.safetensors")


class Killed(Exception):
    pass


def stop_at(step):
    def report(done, figures):
        if done >= step:
            raise Killed

    return report


def same(tensors, others):
    return tensors.keys() == others.keys() and all(
        torch.equal(tensors[name], others[name]) for name in tensors
    )


def checkpoint_folder(settings):
    return settings.out.with_name("sae.checkpoint")


def test_the_folder_says_what_the_sae_is(settings):
    returned = train_on_harvest(settings)
    assert {path.name for path in settings.out.iterdir()} == {
        "cfg.json",
        "sae_weights.safetensors",
        "figures.json",
    }
    assert [p.name for p in settings.out.parent.iterdir()] == ["sae"]
    figures = json.loads((settings.out / "figures.json").read_text())
    assert figures == returned
    assert figures["measured_on"] == "held-out samples"
    # A fifth of 300 samples of 10 rows without position 0, drawn one by one.
    assert 300 < figures["measured_rows"] < 900
    assert figures["training_tokens"] == STEPS * 200
    assert figures["d_sae"] == 48
    assert figures["fidelity"] is None
    metadata = json.loads((settings.out / "cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == SITE
    assert metadata["training_architecture"] == "batchtopk"
    ours = metadata["vllm_sauce"]
    assert ours["figures"] == figures
    assert ours["training"]["k"] == 4
    assert ours["fingerprint"]["architecture"] == "LlavaForConditionalGeneration"
    norms = from_sae_lens(settings.out).W_dec.norm(dim=1)
    assert torch.allclose(norms, torch.ones(48), atol=1e-5)
    assert (settings.out / "sae_weights.safetensors").stat().st_mode & 0o044 == 0o044


@pytest.mark.parametrize("step", [15, STEPS])
def test_a_stopped_training_ends_as_if_it_had_not_been(settings, uninterrupted, step):
    with pytest.raises(Killed):
        train_on_harvest(settings, stop_at(step))
    assert not settings.out.exists()
    seen = []
    train_on_harvest(
        replace(settings, resume=True), lambda done, figures: seen.append(done)
    )
    # The report comes before the checkpoint of its step: that one is not there.
    assert seen[0] == step
    assert same(load_file(settings.out / "sae_weights.safetensors"), uninterrupted)
    assert not checkpoint_folder(settings).exists()


def train_slowly(settings):
    """Train slowly enough to be caught in the middle."""
    train_on_harvest(settings, lambda done, figures: time.sleep(0.5))


def test_a_killed_process_leaves_a_checkpoint_to_go_on_from(settings, uninterrupted):
    child = Copy(train_slowly, settings, env={})
    while not list(checkpoint_folder(settings).glob("step-*")):
        assert child.process.is_alive()
        time.sleep(0.02)
    child.process.kill()
    child.process.join()
    assert child.process.exitcode == -signal.SIGKILL
    assert not settings.out.exists()
    with pytest.raises(ConfigError, match="unfinished training"):
        train_on_harvest(settings)
    train_on_harvest(replace(settings, resume=True))
    assert same(load_file(settings.out / "sae_weights.safetensors"), uninterrupted)


def test_resume_without_a_checkpoint_begins(settings, uninterrupted):
    train_on_harvest(replace(settings, resume=True))
    assert same(load_file(settings.out / "sae_weights.safetensors"), uninterrupted)


def test_another_training_is_not_resumed(settings, tmp_path):
    with pytest.raises(Killed):
        train_on_harvest(settings, stop_at(10))
    resumed = replace(settings, resume=True)
    other = replace(settings.training, learning_rate=1e-3)
    with pytest.raises(TrainingError, match=r"learning_rate 0.002, not 0.001"):
        train_on_harvest(replace(resumed, training=other))
    data, _ = sparse_data(2900)
    grown = write_harvest(tmp_path / "other", data)
    with pytest.raises(TrainingError, match="shards_sha256"):
        train_on_harvest(replace(resumed, harvest=grown))


@pytest.mark.parametrize("name", ["trainer_state.pt", "sae_weights.safetensors"])
def test_a_damaged_checkpoint_is_named(settings, name):
    with pytest.raises(Killed):
        train_on_harvest(settings, stop_at(10))
    (newest,) = checkpoint_folder(settings).glob("step-*")
    content = (newest / name).read_bytes()
    (newest / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(TrainingError, match=r"damaged .* to begin anew"):
        train_on_harvest(replace(settings, resume=True))


def test_a_full_disk_loses_no_checkpoint(settings, uninterrupted, monkeypatch):
    written = []

    def full(path):
        written.append(path)
        if len(written) > 12:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", full)
        with pytest.raises(TrainingError, match="No space left"):
            train_on_harvest(settings)
    assert [p.name for p in checkpoint_folder(settings).iterdir()] == ["step-00000005"]
    train_on_harvest(replace(settings, resume=True))
    assert same(load_file(settings.out / "sae_weights.safetensors"), uninterrupted)


def test_a_result_that_cannot_be_written_is_kept(settings, uninterrupted, monkeypatch):
    def full(target):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(harvest_training, "new_folder", full)
        with pytest.raises(TrainingError, match="--resume writes it again"):
            train_on_harvest(settings)
    assert not settings.out.exists()
    figures = train_on_harvest(replace(settings, resume=True))
    assert figures["tokens_per_s"] is None
    assert same(load_file(settings.out / "sae_weights.safetensors"), uninterrupted)


def test_what_is_wrong_is_said_before_training(settings, tmp_path):
    settings.out.mkdir()
    with pytest.raises(ConfigError, match="already there"):
        train_on_harvest(settings)
    settings.out.rmdir()
    with pytest.raises(ActivationsError, match="holds decoder.1, not 'vision'"):
        train_on_harvest(replace(settings, site="vision"))
    with pytest.raises(ConfigError, match="harvest more or lower the batch"):
        large = replace(settings.training, batch_tokens=10_000, training_tokens=10_000)
        train_on_harvest(replace(settings, training=large))
    data, _ = sparse_data(600)
    broken = write_harvest(tmp_path / "broken", data)
    shard = next(broken.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(bytes(content))
    with pytest.raises(ActivationsError, match="missing or damaged"):
        train_on_harvest(replace(settings, harvest=broken))
    assert not settings.out.exists()
    assert not checkpoint_folder(settings).exists()


def test_settings_that_make_no_sense(settings):
    with pytest.raises(ConfigError, match="ablation is one of"):
        FidelitySettings(ablation="noise")
    with pytest.raises(ConfigError, match="checkpoint_steps"):
        replace(settings, checkpoint_steps=0)


def test_another_model_than_the_harvested_is_refused(harvest, tmp_path):
    file = read_harvest(harvest)
    check_model(str(TINY_MODEL), file)
    config = json.loads((TINY_MODEL / "config.json").read_text())
    config["text_config"]["hidden_size"] = 7
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="another model .*hidden_size: 192, not 7"):
        check_model(str(tmp_path), file)


def test_no_held_out_samples_is_said(settings):
    figures = train_on_harvest(replace(settings, held_out=0.0))
    assert figures["measured_on"] == "training samples"
