# SPDX-License-Identifier: Apache-2.0
"""``sauce train`` on sauce-tiny's own activations."""

import json

import pytest

from tests.cli.sauce import sauce
from tiny.exam import Tiny
from tiny.shards import draw_samples, write_harvest
from vllm_sauce.sae import from_sae_lens

pytest.importorskip("sae_lens")


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty pictures and what the model makes of them at both sites."""
    folder = tmp_path_factory.mktemp("train")
    samples = draw_samples(folder / "pictures", 20)
    write_harvest(Tiny.load(), samples, ["vision", "decoder.1"], folder / "harvest")
    return folder


def sauce_train(folder, site, *options):
    sizes = ("--d-sae", "64", "--k", "8", "--tokens", "3200", "--batch", "64")
    return sauce(
        *("train", folder / "harvest", "--site", site),
        *("--out", folder / site, *sizes, "--lr", "1e-3"),
        *("--held-out", "0.3", "--buffer-mib", "16", *options),
    )


@pytest.mark.parametrize("site", ["vision", "decoder.1"])
def test_it_trains_measures_and_saves(folder, site):
    done = sauce_train(folder, site, "--architecture", "topk")
    assert done.exit_code == 0, done.output
    figures = json.loads((folder / site / "figures.json").read_text())
    assert figures["l0"] <= 8
    assert figures["dead_latents"] <= 64
    fidelity = figures["fidelity"]
    assert 1 <= fidelity["samples"] < 20
    assert fidelity["kl"] > 0
    assert fidelity["ablation"] == "mean"
    assert from_sae_lens(folder / site).d_sae == 64
    for name in ("explained variance", "loss recovered", "tokens/s", "topk"):
        assert name in done.output
    again = sauce_train(folder, site)
    assert again.exit_code == 2
    assert "already there" in again.output


def test_errors_are_one_line(folder):
    done = sauce_train(folder, "decoder.3")
    assert done.exit_code == 2
    assert "sauce train: " in done.output
    assert "holds decoder.1, vision" in done.output
    done = sauce_train(folder, "vision", "--architecture", "other")
    assert done.exit_code == 2
    assert 'Invalid value "other" for --architecture' in done.output
    assert "matryoshka" in done.output


def test_how_latents_are_revived_is_told_and_kept(folder):
    told = {
        "aux_coefficient": ("--aux", 0.5),
        "pre_act_coefficient": ("--pre-act", 0.01),
        "l0_coefficient": ("--l0", 0.2),
        "dead_steps": ("--dead-steps", 9),
        "decoder_init_norm": ("--decoder-norm", 0.25),
    }
    options = [str(part) for pair in told.values() for part in pair]
    out = folder / "told"
    common = ("--architecture", "batchtopk", "--out", str(out), *options)
    done = sauce_train(folder, "vision", *common, "--dead-steps", "50")
    assert done.exit_code == 2
    # 3,200 rows in batches of 64.
    assert "dead_steps must be above 0 and below the 50 steps" in done.output
    done = sauce_train(folder, "vision", *common, "--fidelity-samples", "0")
    assert done.exit_code == 0, done.output
    config = json.loads((out / "cfg.json").read_text())
    kept = config["metadata"]["vllm_sauce"]["training"]
    assert {name: kept[name] for name in told} == {n: v for n, (_, v) in told.items()}
