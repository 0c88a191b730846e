# SPDX-License-Identifier: Apache-2.0
"""Loss recovered in sauce-tiny, with SAEs whose effect is known."""

import hashlib
import json

import pytest
import torch

from tests.places import TINY
from vllm_sauce.activations.row_choice import RowChoice
from vllm_sauce.activations.shards import Role
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.training.fidelity import (
    Fidelity,
    measurable_samples,
    measure_fidelity,
)
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.sae import SAEWeights

WIDTHS = {"vision": 256, "decoder.1": 192}


@pytest.fixture(scope="module")
def subject():
    return LoadedModel.load(TINY / "model", "cpu")


@pytest.fixture(scope="module")
def samples():
    rows = (TINY / "pictures/labels.jsonl").read_text().splitlines()[:5]
    return [
        Sample(
            key=str(n),
            prompt="Describe the picture.",
            picture=PictureFile(TINY / "pictures" / json.loads(row)["file"]),
        )
        for n, row in enumerate(rows)
    ]


def identity_sae(d_model):
    """Latents are the positive and the negative parts of x."""
    eye = torch.eye(d_model)
    return SAEWeights(
        W_enc=torch.cat([eye, -eye], dim=1),
        W_dec=torch.cat([eye, -eye]),
        b_enc=torch.zeros(2 * d_model),
        b_dec=torch.zeros(d_model),
    )


def constant_sae(d_model, value):
    """No latent ever fires; b_dec is all that comes out."""
    return SAEWeights(
        W_enc=torch.zeros(d_model, 3),
        W_dec=torch.zeros(3, d_model),
        b_enc=torch.full((3,), -1.0),
        b_dec=value,
    )


@pytest.mark.parametrize("site", WIDTHS)
def test_a_perfect_sae_recovers_all(subject, samples, site):
    d_model = WIDTHS[site]
    result = measure_fidelity(
        subject, site, identity_sae(d_model), torch.zeros(d_model), samples
    )
    assert abs(result.kl) < 1e-6
    assert result.loss_recovered == pytest.approx(1, abs=1e-5)
    # Without the site the model is another: else nothing was measured.
    assert result.ablated_kl > 0.1
    assert result.ablated_loss > result.clean_loss + 0.1
    assert result.num_samples == 5
    assert result.num_tokens >= 10


@pytest.mark.parametrize("site", WIDTHS)
@pytest.mark.parametrize("ablation", [0.0, 0.5])
def test_an_sae_that_says_what_ablation_says_recovers_nothing(
    subject, samples, site, ablation
):
    gone = torch.full((WIDTHS[site],), ablation)
    result = measure_fidelity(
        subject, site, constant_sae(WIDTHS[site], gone), gone, samples[:2]
    )
    assert result.loss_recovered == pytest.approx(0, abs=1e-6)
    assert result.kl == pytest.approx(result.ablated_kl)
    assert result.kl > 0.01


def test_the_clean_loss_is_that_of_the_models_own_answer(subject, samples):
    """Generation's own logits are the oracle."""
    prompt = subject.inputs([samples[0]])
    out = subject.model.generate(
        **prompt,
        max_new_tokens=16,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    want = torch.stack([-x[0].log_softmax(-1).max() for x in out.logits]).mean()
    result = measure_fidelity(
        subject, "vision", identity_sae(256), torch.zeros(256), samples[:1]
    )
    assert result.num_tokens == len(out.logits)
    assert result.clean_loss == pytest.approx(float(want), abs=1e-5)


def test_only_rows_of_the_chosen_kinds_are_replaced(subject, samples):
    gone = torch.zeros(192)
    sae = constant_sae(192, gone)

    def kl(*roles, **options):
        choice = RowChoice(frozenset(roles), **options)
        return measure_fidelity(
            subject, "decoder.1", sae, gone, samples[:2], choice=choice
        ).kl

    parts = {role: kl(role) for role in Role}
    assert min(parts.values()) > 1e-4
    assert len({round(value, 6) for value in parts.values()}) == 3
    assert kl(*Role) != pytest.approx(kl(*Role, skip=1))
    generated = RowChoice(frozenset({Role.GENERATED}))
    at_vision = measure_fidelity(
        subject,
        "vision",
        constant_sae(256, torch.zeros(256)),
        torch.zeros(256),
        samples[:1],
        choice=generated,
    )
    assert at_vision.kl == pytest.approx(0, abs=1e-6)
    assert at_vision.loss_recovered is None


def test_text_alone_is_measured_in_a_decoder_and_not_at_vision(subject):
    text = Sample(key="t", prompt="What object is in the picture?")
    result = measure_fidelity(
        subject, "decoder.1", identity_sae(192), torch.zeros(192), [text]
    )
    assert result.num_samples == 1
    assert abs(result.kl) < 1e-6
    with pytest.raises(ConfigError, match="no samples"):
        measure_fidelity(subject, "vision", identity_sae(256), torch.zeros(256), [text])


def test_the_formula():
    """Half of what ablation costs (4 - 2) comes back."""
    result = Fidelity(0.1, 0.5, 2.0, 3.0, 4.0, 1, 10)
    assert result.loss_recovered == pytest.approx(0.5)
    assert result.to_json()["loss_recovered"] == 0.5
    assert Fidelity(0.1, 0.5, 2.0, 3.0, 2.0, 1, 10).to_json()["loss_recovered"] is None


def line(key, content):
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    return {"key": key, "prompt": f"about {key}", "picture": digest, "concepts": ["a"]}


def test_pictures_are_found_by_their_bytes(tmp_path):
    moved = tmp_path / "album/deep/other-name.png"
    moved.parent.mkdir(parents=True)
    moved.write_bytes(b"one")
    kept = tmp_path / "two.png"
    kept.write_bytes(b"two")
    changed = tmp_path / "three.png"
    changed.write_bytes(b"not three")
    samples = [
        line("x/one.png", b"one"),
        line(str(kept), b"two"),
        line(str(changed), b"three"),
        line("text", None),
        line("x/one.png#again", b"one"),
    ]
    everything = torch.arange(5, dtype=torch.int32)
    found = measurable_samples(samples, everything, [tmp_path / "album"], 10)
    assert [s.key for s in found] == [
        "x/one.png",
        str(kept),
        "text",
        "x/one.png#again",
    ]
    assert [s.picture.read() if s.picture else None for s in found] == [
        b"one",
        b"two",
        None,
        b"one",
    ]
    assert found[0].prompt == "about x/one.png"
    assert found[0].concepts == ("a",)
    assert [s.key for s in measurable_samples(samples, everything, [], 10)] == [
        str(kept),
        "text",
    ]
    assert len(measurable_samples(samples, everything, [], 1)) == 1
    some = torch.tensor([3], dtype=torch.int32)
    assert [s.key for s in measurable_samples(samples, some, [], 9)] == ["text"]
