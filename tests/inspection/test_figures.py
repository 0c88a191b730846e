# SPDX-License-Identifier: Apache-2.0
"""What a report says of sauce-tiny is what its world and its model say."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from tests.inspection.world import NAMES, WORDING, grid_of
from tests.tiny_world import draw, random_sae, sample_of
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import OF_TEXT, SPARING, VISION, Catalogue, Concept, SiteEdit
from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import UnknownConceptError, UnsupportedFeatureError
from vllm_sauce.evaluation.asking.asker import Ask
from vllm_sauce.evaluation.asking.hf_model import ModelAsker
from vllm_sauce.evaluation.asking.shared_pictures import SharedPictures
from vllm_sauce.evaluation.questions import Kind
from vllm_sauce.inspection.activation_maps import (
    SitePeaks,
    activation_maps,
    latent_peaks,
    latent_statistics,
)
from vllm_sauce.inspection.concept_effects import EffectMeasure
from vllm_sauce.inspection.overlap import latent_owners, overlaps
from vllm_sauce.inspection.questions import choose_questions
from vllm_sauce.models.answer_tokens import beginnings, spellings
from vllm_sauce.models.site_edits import site_actions, sparing_sink
from vllm_sauce.models.site_hooks import site_hook, vision_features


def small_catalogue(bundle: Bundle) -> Catalogue:
    return Catalogue([bundle.catalogue[name] for name in NAMES])


@pytest.mark.parametrize(
    ("site", "name"),
    [(VISION, "clock"), (VISION, "cat"), (VISION, "pig"), ("decoder.1", "clock")],
)
def test_a_latent_fires_where_the_thing_is(site, name, loaded, saes):
    """The latents that tell it best fire on its patches, and the right way round."""
    drawn = draw([name] * 40 + ["tree", "tennis", "dog", "boat"] * 10, seed=1)
    samples = [sample_of(picture, str(i)) for i, picture in enumerate(drawn)]
    own = list(range(6))
    latents = tuple(range(saes[site].d_sae))
    peaks = latent_peaks(loaded, samples, saes, {site: latents})[site]
    stats = latent_statistics(peaks, latents, samples, name)
    best = sorted(latents, key=lambda j: stats[j].firing_without - stats[j].firing_with)
    best = best[:8]
    found = activation_maps(loaded, samples, saes, {(site, j): own for j in best})
    means = []
    for row in own:
        grids = [grid_of(found.maps[site, latent][row]) for latent in best]
        heat, covered = (
            torch.stack(grids).sum(0),
            torch.tensor(drawn[row].coverage > 0.5),
        )
        assert heat.shape == covered.shape == (7, 7)
        places = (heat[covered], heat[~covered], heat.T[covered])
        means.append([float(place.mean()) for place in places])
    inside, outside, turned = torch.tensor(means).mean(0)
    assert inside > 1.4 * outside
    assert inside > 1.1 * turned


def test_maps_are_the_saes_own_activations(loaded, bundle, saes, samples):
    latents = bundle.catalogue["cat"].edits[VISION].latents[:3]
    maps = activation_maps(
        loaded, samples, saes, {(VISION, j): [6, 2] for j in latents}
    )
    pixels = loaded.inputs([samples[2], samples[6]])["pixel_values"]
    acts = saes[VISION].encode(vision_features(loaded.model, pixels))
    for latent in latents:
        first, second = maps.maps[VISION, latent]
        assert (first.row, second.row) == (6, 2)
        assert torch.allclose(grid_of(first).flatten(), acts[1, :, latent], atol=1e-4)
        assert torch.allclose(grid_of(second).flatten(), acts[0, :, latent], atol=1e-4)
        assert first.peak == pytest.approx(float(acts[1, :, latent].max()), abs=1e-4)


def test_words_get_their_tokens_activations(loaded, bundle, saes, samples):
    """In the decoder the words of a prompt count, with a picture and without."""
    alone = Sample(key="text", prompt="Is there a dog in the picture?")
    both = [*samples[:2], alone]
    site = "decoder.1"
    latents = tuple(range(saes[site].d_sae))
    peaks = latent_peaks(loaded, both, saes, {site: latents, VISION: (0,)})
    assert peaks[site].seen.tolist() == [True, True, True]
    assert peaks[VISION].seen.tolist() == [True, True, False]
    latent = int(peaks[site].peak[2].argmax())
    found = activation_maps(loaded, both, saes, {(site, latent): [2, 0]})
    text, picture = found.maps[site, latent]
    assert text.grid is None and text.peak > 0
    assert "".join(word for word, _ in text.words).replace(" ", "").lower() == (
        "user:isthereadoginthepicture?assistant:"
    )
    assert max(act for _, act in text.words) == pytest.approx(text.peak)
    assert float(peaks[site].peak[2, latent]) == pytest.approx(text.peak, rel=1e-4)
    assert grid_of(picture).shape == (7, 7)
    assert 2 not in found.pictures and found.pictures[0].shape == (56, 56, 3)


def test_pictures_are_shown_as_the_model_sees_them(loaded, samples, pictures):
    pixels = loaded.inputs(samples[:1])["pixel_values"]
    seen = loaded.seen(pixels)[0].int()
    drawn = torch.tensor(list(pictures[0].image.convert("RGB").tobytes())).view(
        56, 56, 3
    )
    assert int((seen - drawn).abs().max()) <= 1


def test_statistics_by_hand():
    peaks = SitePeaks(
        latents=(7, 3),
        peak=torch.tensor([[2.0, 0], [0, 1], [4, 5], [9, 9]]),
        mean=torch.tensor([[1.0, 0], [0, 0.5], [2, 1], [9, 9]]),
        seen=torch.tensor([True, True, True, False]),
    )
    samples = [
        Sample(key=str(i), prompt="", concepts=("dog",) if i in (0, 1, 3) else ())
        for i in range(4)
    ]
    stats = latent_statistics(peaks, (3, 7), samples, "dog")
    assert stats[7].firing_with == 0.5 and stats[7].firing_without == 1
    assert stats[7].mean_with == 0.5 and stats[7].mean_without == 2
    assert stats[3].mean_with == 0.25 and stats[3].firing_without == 1
    assert peaks.top(7, 2) == [3, 2] and peaks.top(3, 9) == [3, 2, 1]
    nothing = latent_statistics(peaks, (3,), samples, "cow")[3]
    assert nothing.mean_with != nothing.mean_with  # NaN: no sample has it


def test_overlap_by_hand(saes):
    W_dec = torch.zeros(4, 3)
    W_dec[0, 0] = W_dec[1, 1] = 2
    W_dec[2] = torch.tensor([3.0, 4, 0])
    W_dec[3, 2] = 1
    sae = replace(
        random_sae("standard"),
        W_enc=torch.zeros(3, 4),
        W_dec=W_dec,
        b_enc=torch.zeros(4),
        b_dec=torch.zeros(3),
    )
    edits = {"a": (0, 3), "b": (2, 3), "c": (1,)}
    catalogue = Catalogue(
        Concept(name=n, domain="d", edits={VISION: SiteEdit.uniform(rows)})
        for n, rows in edits.items()
    )
    found = overlaps(catalogue, {VISION: sae}, "a")
    assert found["b"].shared == 1 and found["c"].shared == 0
    # Latent 0 against 2: 3/5; latent 3 is shared.
    assert found["b"].similarity == pytest.approx((0.6 + 1) / 2)
    assert found["c"].similarity == 0
    assert latent_owners(catalogue)[VISION, 3] == ("a", "b")


def test_questions_fit_the_pictures(bundle, samples):
    questions = choose_questions(samples, bundle.catalogue, WORDING, 2)
    for name in NAMES:
        mine = (name, Kind.YES)
        asked = {q.picture for q in questions if (q.about, q.kind) == mine}
        assert len(asked) >= 2
    shown = {sample.picture: sample.concepts for sample in samples}
    for question in questions:
        assert question.shown == shown[question.picture]
        assert (question.about in question.shown) is (question.kind is not Kind.NO)
        if question.kind is Kind.NAME:
            assert bundle.catalogue[question.about].domain == "objects"
    assert {q.kind for q in questions} == {Kind.YES, Kind.NO, Kind.NAME}
    assert questions == choose_questions(samples, bundle.catalogue, WORDING, 2)
    words = [Sample(key="t", prompt="a clock", concepts=("clock",))]
    assert choose_questions(words, bundle.catalogue, WORDING, 2) == []


def sparing(catalogue: Catalogue) -> Catalogue:
    """Return the same edits, of all tokens but the sink."""
    return Catalogue(
        replace(
            concept,
            edits={s: replace(e, tokens=SPARING) for s, e in concept.edits.items()},
        )
        for concept in catalogue.values()
    )


@pytest.mark.parametrize("spared", [False, True])
@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("forget", ["clock", "tennis", "cat"])
def test_shared_pictures_answer_as_plain_prompts(
    spared, strength, forget, loaded, bundle, saes, samples
):
    """Names of several tokens too, unedited and edited, lengths mixed."""
    wording = replace(WORDING, answers={"clock": ("a red clock",), "cat": ("cat",)})
    catalogue = small_catalogue(bundle)
    catalogue = sparing(catalogue) if spared else catalogue
    shared, plain = (ModelAsker(loaded, catalogue, saes) for _ in range(2))
    assert isinstance(shared.pictures, SharedPictures)
    plain.pictures = plain.prompts
    tokenizer = shared.tokenizer
    asks = []
    for question in choose_questions(samples, catalogue, wording, 2):
        named = question.kind is Kind.NAME
        wanted = (spellings if named else beginnings)(tokenizer, question.words)
        asks.append(
            Ask(question=question, forget=(forget,), strength=strength, wanted=wanted)
        )
    unedited = shared.ask([replace(ask, forget=()) for ask in asks])
    changed = 0.0
    for ask, one, other, before in zip(
        asks, shared.ask(asks), plain.ask(asks), unedited, strict=True
    ):
        assert (one.said, one.text) == (other.said, other.text)
        assert one.says(ask.wanted) is other.says(ask.wanted)
        for tokens in ask.wanted:
            after = one.probability([tokens])
            assert after == pytest.approx(other.probability([tokens]), abs=1e-4)
            changed = max(changed, abs(after - before.probability([tokens])))
    assert (changed > 0.5) is (strength > 0)


def test_kinds_of_tokens_are_told_or_refused(
    loaded, bundle, saes, samples, monkeypatch
):
    """An edit of text alone, of a model whose prompts do not say where pictures are."""
    catalogue = small_catalogue(bundle)
    text = {"decoder.1": replace(SiteEdit.uniform(range(9)), tokens=OF_TEXT)}
    clock = replace(catalogue["clock"], edits=text)
    asker = ModelAsker(loaded, Catalogue([clock]), saes)
    question = choose_questions(samples, catalogue, WORDING, 1)[0]
    ask = Ask(question=question, forget=("clock",))
    assert asker.ask([ask])[0].said
    monkeypatch.setattr(type(loaded), "image_token_id", -1)
    with pytest.raises(UnsupportedFeatureError, match="which those are: ask vLLM"):
        asker.ask([ask])


def test_answers_are_read_as_transformers_writes_them(loaded, bundle, saes, samples):
    asker = ModelAsker(loaded, small_catalogue(bundle), saes)
    question = choose_questions(samples, asker.catalogue, WORDING, 1)[0]
    told = replace(question, prompt="Describe the picture.")
    picture = Sample(key="", prompt=told.prompt, picture=told.picture)
    inputs = loaded.inputs([picture])
    edits = asker.catalogue["clock"].edits
    answers = []
    for forget, acts in (((), {}), (("clock",), site_actions(saes, edits, 1.0))):
        with ExitStack() as hooks:
            for site, edit in acts.items():
                hooks.enter_context(site_hook(loaded.model, site, sparing_sink(edit)))
            out = loaded.model.generate(
                **inputs, max_new_tokens=4, do_sample=False, use_cache=False
            )
        words = tuple(out[0, inputs["input_ids"].shape[1] :].tolist())
        ask = Ask(question=told, forget=forget, wanted=(words,))
        (read,) = asker.ask([ask])
        assert read.said[:4] == words and read.says([words])
        answers.append(words)
    assert answers[0] != answers[1]


def test_an_unknown_concept_is_refused(loaded, bundle, saes, samples):
    asker = ModelAsker(loaded, small_catalogue(bundle), saes)
    question = choose_questions(samples, asker.catalogue, WORDING, 1)[0]
    with pytest.raises(UnknownConceptError, match="clok"):
        asker.ask([Ask(question=question, forget=("clok",))])


@pytest.fixture(scope="module")
def measure(loaded, bundle, saes, samples) -> EffectMeasure:
    catalogue = small_catalogue(bundle)
    questions = choose_questions(samples, catalogue, WORDING, 4)
    asker = ModelAsker(loaded, catalogue, saes)
    return EffectMeasure(asker, questions, catalogue, strengths=(0, 0.5, 1, 2, 3))


def test_strength_zero_is_the_unedited_model_exactly(measure):
    effects = measure.effects("clock")
    own = [
        measure.plain[i].probability
        for i, q in enumerate(measure.questions)
        if (q.about, q.kind) == ("clock", Kind.YES)
    ]
    (line,) = [line for line in effects.lines if line.label == "says it is there"]
    assert line.questions == len(own) >= 4
    assert line.probability[0] == pytest.approx(sum(own) / len(own), abs=1e-7)


@pytest.mark.parametrize("name", ["tree", "cat"])
def test_doses_make_a_concept_fall_and_leave_the_others(name, measure):
    ticks = []
    effects = measure.effects(name, lambda: ticks.append(1))
    assert len(ticks) == len(effects.strengths) == 5
    target = [line for line in effects.lines if line.target]
    kept = [line for line in effects.lines if not line.target]
    assert {line.label for line in target} == {"says it is there", "names it"}
    for line in target:
        assert line.probability[0] > 0.8
        assert list(line.probability) == sorted(line.probability, reverse=True)
        assert line.probability[2] < 0.3
    forgotten = max(line.probability[2] for line in target)
    assert min(line.probability[2] for line in kept) > forgotten + 0.25
    assert effects.own is not None and effects.own.drop > 0.5
    assert [d.name for d in effects.damages] and name not in {
        d.name for d in effects.damages
    }
    drops = [damage.drop for damage in effects.damages]
    assert drops == sorted(drops, reverse=True)
    # The same questions, asked by hand.
    worst = effects.damages[0]
    asks = [
        Ask(question=q, forget=(name,), wanted=measure.wanted[i])
        for i, q in enumerate(measure.questions)
        if q.about == worst.name and q.kind is not Kind.NO and name not in q.shown
    ]
    answers = zip(asks, measure.asker.ask(asks), strict=True)
    after = [answer.probability(ask.wanted) for ask, answer in answers]
    assert worst.after == pytest.approx(sum(after) / len(after), abs=1e-4)
