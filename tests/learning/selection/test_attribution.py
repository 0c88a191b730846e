# SPDX-License-Identifier: Apache-2.0
"""What attribution says a latent does is what turning it down a little does."""

import json
from dataclasses import replace

import pytest
import torch

from tests.places import TINY
from tiny.exam import balanced_pictures
from vllm_sauce.bundle import Bundle
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.evaluation.questions import Kind
from vllm_sauce.learning.selection.attribution import (
    attribution_questions,
    attribution_scores,
)
from vllm_sauce.models.answer_tokens import beginnings
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.site_hooks import site_hook

DOMAINS = {"pig": "objects", "frog": "objects", "wood": "materials"}
SITES = ("decoder.1", "vision")


@pytest.fixture(scope="module")
def loaded():
    return LoadedModel.load(TINY / "model")


@pytest.fixture(scope="module")
def saes():
    bundle = Bundle.load(TINY / "latents")
    return {site: bundle.sites[site].weights for site in SITES}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    rows = []
    for number, picture in enumerate(balanced_pictures("selection", 6)):
        picture.image.save(folder / f"{number}.png")
        rows.append({"file": f"{number}.png", "concepts": list(picture.concepts)})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    named = "\n".join(f"  {n}: {{domain: {d}}}" for n, d in DOMAINS.items())
    (folder / "concepts.yaml").write_text(
        "version: 1\nminimum: 1\n"
        "pictures: {jsonl: rows.jsonl, image: file, concepts: concepts}\n"
        "questions:\n"
        '  objects: {name: "What object is in the picture?",'
        ' exists: "Is there {a concept} in the picture?"}\n'
        '  materials: {name: "What material is the background?",'
        ' exists: "Is there {concept} in the picture?"}\n'
        f"concepts:\n{named}\n"
    )
    return ConceptFile.read(folder / "concepts.yaml")


@pytest.fixture(scope="module")
def questions(file):
    return attribution_questions(file, "selection", 2)


@torch.no_grad()
def margin(loaded, sae, site, asked, latent, share):
    """Return the right answer's lead with one latent turned down by a share."""

    def turned_down(x):
        acts = sae.encode(x.float())[..., latent, None]
        if site != "vision":
            acts[:, 0] = 0  # the sink, which edits spare
        return x - share * acts * sae.W_dec[latent]

    with site_hook(loaded.model, site, turned_down):
        sample = Sample(key="", prompt=asked.prompt, picture=asked.picture)
        logits = loaded.model(**loaded.inputs([sample])).logits[0, -1].double()

    def likely(words):
        tokens = beginnings(loaded.processor.tokenizer, words)
        return logits[[token for (token,) in tokens]].logsumexp(0)

    others = likely(asked.rivals) if asked.rivals else logits.logsumexp(0)
    return float(likely(asked.words) - others)


@pytest.mark.parametrize("site", SITES)
def test_it_is_the_slope_of_the_margin(loaded, saes, file, questions, site):
    """One question about one concept, so nothing else enters its score."""
    sae, share = saes[site], 0.02
    asked = next(q for q in questions if q.about == "pig" and q.rivals)
    alone = replace(asked, shown=("pig",))
    scores = attribution_scores(loaded, sae, site, file, [alone])["pig"]
    top = scores.abs().topk(5).indices.tolist()
    plain = margin(loaded, sae, site, asked, top[0], 0.0)
    for latent in top:
        slope = (plain - margin(loaded, sae, site, asked, latent, share)) / share
        assert slope == pytest.approx(float(scores[latent]), rel=0.15, abs=2e-3)


def test_a_batch_is_its_questions(loaded, saes, file, questions):
    """Padding, and what shares a batch, changes nothing."""
    few = questions[:7]
    one, many = (
        attribution_scores(loaded, saes["decoder.1"], "decoder.1", file, few, batch=b)
        for b in (1, 7)
    )
    for name in one:
        torch.testing.assert_close(one[name], many[name], rtol=1e-3, atol=1e-4)


def test_what_others_lose_counts_against(loaded, saes, file, questions):
    """With no weight on harm, no latent scores less."""
    few = questions[:12]
    kind, harsh = (
        attribution_scores(
            loaded, saes["vision"], "vision", file, few, harm_weight=weight
        )
        for weight in (0.0, 1.0)
    )
    assert all(bool((harsh[name] <= kind[name]).all()) for name in kind)
    assert any(bool((harsh[name] < kind[name]).any()) for name in kind)


def test_every_concept_is_asked_about_enough(file, questions):
    shown: dict[str, set[str]] = {}
    for asked in questions:
        assert asked.about in asked.shown
        shown.setdefault(asked.about, set()).add(asked.picture.name)
    assert set(shown) == set(file.concepts)
    assert all(len(pictures) >= 2 for pictures in shown.values())
    named = [q for q in questions if q.kind is Kind.NAME]
    assert {q.rivals for q in named if q.about == "pig"} == {("frog",)}
    # Nothing of wood's domain could be said instead: then anything may.
    assert {q.rivals for q in named if q.about == "wood"} == {()}


def test_a_layer_norm_sae_is_refused(loaded, saes, file, questions):
    sae = replace(saes["vision"], normalize_activations="layer_norm")
    with pytest.raises(ConfigError, match="use share"):
        attribution_scores(loaded, sae, "vision", file, questions[:1])
