# SPDX-License-Identifier: Apache-2.0
"""What the bundle of latents says of itself, recomputed in part with the model."""

import pytest
import torch
import yaml
from torch import Tensor

from tests.engines import starts_engine
from tests.places import TINY
from tiny.exam import LATENTS_FOLDER, MODEL_FOLDER, Tiny, balanced_pictures
from tiny.sae_figures import measure_saes
from tiny.user_pictures import empty_pictures, write_labelled
from vllm_sauce.bundle import Bundle
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.evaluation.metrics import NAMES
from vllm_sauce.measuring.measure import measure
from vllm_sauce.measuring.settings import OURS, PLAIN, EvalRequest, EvalSettings
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.site_hooks import site_hook

CHECKED = ("doubt", "red")
"""One that is edited at both sites, half of whose answers are spoilt after their first
token; one at the tower."""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(LATENTS_FOLDER)


def test_each_score_says_what_measured_it(bundle: Bundle):
    """Of whole answers, as served; what the study's command records."""
    for concept in bundle.catalogue.values():
        told = concept.provenance["scored"]
        assert isinstance(told, dict)
        assert (told["by"], told["split"]) == ("sauce eval --record", "scoring")
        assert (
            {*NAMES, "HM", "malformed"}
            == {*told["n"]}
            == {*concept.scores} & {*told["n"]}
        )
        assert min(told["n"].values()) >= 20
        mode = {"dtype": "float32", "eager": True}
        assert concept.provenance["measured_as"] == mode


@pytest.fixture(scope="module")
@starts_engine
def measured(tmp_path_factory):
    """Some of the study's questions, on pictures as it draws them."""
    folder = tmp_path_factory.mktemp("fresh")
    pictures = balanced_pictures("scoring", 50) + empty_pictures(50, drawn="scoring")
    write_labelled(folder, pictures)
    file = folder / "concepts.yaml"
    told = yaml.safe_load(file.read_text())
    told["splits"] = {"selection": 0.2, "calibration": 0.2, "scoring": 0.6}
    file.write_text(yaml.safe_dump(told, sort_keys=False))
    return measure(
        EvalRequest(
            LATENTS_FOLDER,
            model=str(TINY / "model"),
            concepts=file,
            out=tmp_path_factory.mktemp("measured"),
            names=CHECKED,
            settings=EvalSettings(
                methods=(OURS,),
                positives=30,
                negatives=16,
                watched=0,
                eliminated=0,
                together=(),
            ),
            engine_args={"dtype": "float32", "max_model_len": 256},
        )
    )


@pytest.mark.parametrize("name", CHECKED)
def test_scores_are_what_is_served(bundle: Bundle, measured, name: str):
    recorded = bundle.catalogue[name].scores
    told = bundle.catalogue[name].provenance["scored"]
    assert isinstance(told, dict)
    for score in (*NAMES, "malformed"):
        now, plain = measured.alone[OURS][name], measured.alone[PLAIN][name]
        assert now[score].n == told["n"][score]
        # Another machine's rounding may flip an answer or two.
        flipped = max(0.05, 2 / now[score].n)
        assert now[score].value == pytest.approx(recorded[score], abs=flipped)
        assert plain[score].value == pytest.approx(
            recorded[f"base_{score}"], abs=flipped
        )


def test_sae_figures_are_what_the_saes_do(bundle: Bundle):
    saes = {site: sae.weights for site, sae in bundle.sites.items()}
    # A third of the pictures: 45,000 tokens, where the figures vary by one part in 100.
    figures = measure_saes(Tiny.load(), saes, per_foreground=8)
    for site, found in figures.items():
        shipped = bundle.sites[site].entry.activation
        assert found == pytest.approx(shipped, rel=0.02, abs=0.01)


def test_no_latent_is_dead(bundle: Bundle):
    for sae in bundle.sites.values():
        assert sae.entry.activation["dead_share"] == 0


def test_no_gate_lies_on_what_every_prompt_has(bundle: Bundle):
    """There rounding, and so the rest of a batch, would decide what is edited."""
    loaded = LoadedModel.load(MODEL_FOLDER)
    held: list[Tensor] = []

    def hold(x: Tensor) -> Tensor:
        held.append(x[0])
        return x

    picture = PictureFile(TINY / "pictures" / "000.png")
    inputs = loaded.inputs([Sample(key="", prompt="What?", picture=picture)])
    with torch.inference_mode(), site_hook(loaded.model, "decoder.1", hold):
        loaded.model(**inputs)
    image = inputs["input_ids"][0] == loaded.image_token_id
    before = int(image.nonzero()[0, 0])
    acts = bundle.sites["decoder.1"].weights.encode(held[0][:before].float())
    assert before >= 1 and bool((acts > 1).any())
    for name, concept in bundle.catalogue.items():
        if edit := concept.edits.get("decoder.1"):
            z, gate = acts[:, list(edit.latents)], torch.tensor(edit.gate)
            near = (z - gate).abs() < 1e-3 * gate
            assert not near.any(), name
