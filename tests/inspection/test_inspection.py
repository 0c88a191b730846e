# SPDX-License-Identifier: Apache-2.0
"""An inspection of chosen concepts, of texts alone, and of another model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.inspection.world import WORDING, grid_of
from tests.plugin.models.parts import D_MODEL
from tests.plugin.models.vision_models import write_vision_model
from tests.plugin.random_bundle import random_sae
from tiny.exam import MODEL_FOLDER
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import ConfigError, UnknownConceptError
from vllm_sauce.inspection.inspection import inspect_bundle
from vllm_sauce.inspection.settings import InspectSettings
from vllm_sauce.models.loaded_model import LoadedModel


def test_inspection_of_chosen_concepts(loaded, bundle, samples):
    stages = {}
    settings = InspectSettings(latents=3, top=4, probes=1, retained=2, strengths=(0, 1))
    found = inspect_bundle(
        bundle,
        loaded,
        [*samples, Sample(key="t", prompt="Is there a clock?", concepts=("clock",))],
        ["tree", "clock", "tree"],
        settings,
        wording=WORDING,
        watch=lambda stage, done, total: stages.update({stage: (done, total)}),
    )
    assert [view.concept.name for view in found.concepts] == ["tree", "clock"]
    assert all(done == total for done, total in stages.values()) and len(stages) == 3
    assert not found.whole
    clock = found.concepts[1]
    assert (clock.samples_with, clock.samples_without) == (6, 15)
    assert len(clock.latents) == 3 and clock.num_latents > 3
    for view in clock.latents:
        peaks = [one.peak for one in view.maps]
        assert peaks == sorted(peaks, reverse=True) and 0 < len(peaks) <= 4
        assert view.statistics.mean_with > view.statistics.mean_without
        assert {one.row for one in view.maps if one.grid is not None} <= set(
            found.pictures
        )
    assert len(clock.overlaps) == len(bundle.catalogue) - 1


def test_texts_alone_can_be_inspected(loaded, bundle):
    """Nothing can be asked, but latents fire on words; wrong names are refused."""
    texts = [
        Sample(key="1", prompt="Is there a clock?", concepts=("clock",)),
        Sample(key="2", prompt="Do you see a tree?"),
    ]
    found = inspect_bundle(bundle, loaded, texts, ["clock"], InspectSettings(top=2))
    (view,) = found.concepts
    assert view.effects.lines == () and view.effects.own is None
    assert found.num_questions == 0 and not found.pictures
    with pytest.raises(UnknownConceptError, match="clock"):
        inspect_bundle(bundle, loaded, texts, ["clok"])
    with pytest.raises(ConfigError, match="not a single"):
        inspect_bundle(bundle, loaded, [])


def test_other_models_are_asked_one_prompt_at_a_time(tmp_path, samples):
    """Gemma 3, with random weights: norms and windows that LLaVA has not."""
    model = write_vision_model(tmp_path / "model", "gemma3", MODEL_FOLDER)
    edit = SiteEdit.uniform(range(7, 60), gamma=-4.0, shift=-1.0, gate=0.05)
    concept = Concept(name="read", domain="random", edits={"decoder.1": edit})
    sae = random_sae(
        2, D_MODEL, threshold=torch.full((96,), 0.1), architecture="jumprelu"
    )
    Bundle.build(
        fingerprint_model(model), {"decoder.1": sae}, Catalogue([concept])
    ).save(tmp_path / "bundle")
    loaded = LoadedModel.load(model, "cpu")
    template = (MODEL_FOLDER / "chat_template.jinja").read_text()
    loaded.processor.chat_template = template.replace("<image>", "<start_of_image>")
    shown = [replace(sample, concepts=("read",)) for sample in samples[:3]]
    settings = InspectSettings(probes=2, strengths=(0, 1))
    bundle = Bundle.load(tmp_path / "bundle")
    (view,) = inspect_bundle(
        bundle, loaded, shown, [], settings, wording=WORDING
    ).concepts
    (line,) = view.effects.lines
    assert line.questions == 2 and line.probability[0] != line.probability[1]
    one = view.latents[0].maps[0]
    assert grid_of(one).shape == (2, 2)
    assert "".join(word for word, _ in one.words).endswith("assistant:")
    assert not any("\n" in word for word, _ in one.words)
