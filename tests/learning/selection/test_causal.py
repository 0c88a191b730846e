# SPDX-License-Identifier: Apache-2.0
"""Candidate edits in one engine, against transformers; causal scores made of them."""

import contextlib
import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")

from tests.activations.harvests import harvest_pictures
from tests.engines import starts_engine
from tests.plugin import support
from tests.plugin.support import MODEL, ReferenceModel, picture
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import SiteEdit
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.data.samples import PictureFile
from vllm_sauce.errors import (
    ActivationsError,
    ConfigError,
    InvalidStrengthError,
    UnknownConceptError,
)
from vllm_sauce.evaluation.asking import vllm_engine
from vllm_sauce.evaluation.asking.asker import Ask
from vllm_sauce.evaluation.asking.rendered_prompts import RenderedPrompts
from vllm_sauce.evaluation.asking.vllm_engine import EngineAsker
from vllm_sauce.evaluation.questions import Kind, Question
from vllm_sauce.learning.selection.causal import (
    CausalTask,
    candidate_name,
    latent_candidates,
    measure,
)
from vllm_sauce.learning.selection.select import select
from vllm_sauce.learning.selection.settings import SelectRequest
from vllm_sauce.models.answer_tokens import beginnings
from vllm_sauce.plugin import compat

TINY = MODEL.parent
ENGINE = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 16,
    "block_size": 32,
    "kv_cache_memory_bytes": 64 * 1024 * 1024,
    "seed": 0,
}
QUESTION = "What object is in the picture?"
DEAD = 2047
"""A latent that is tried beside dog's own."""


@dataclass(frozen=True)
class Blocks:
    """The engine tests' random picture as a Picture."""

    seed: int
    name: str = "blocks"

    def read(self):
        file = io.BytesIO()
        picture(self.seed).save(file, "PNG")
        return file.getvalue()


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load(TINY / "latents")


@pytest.fixture(scope="module")
def dog(bundle):
    """The shipped edit of dog at the vision site."""
    return bundle.catalogue.concept("dog").edits["vision"]


@pytest.fixture(scope="module")
def request_(tmp_path_factory):
    """A causal selection of two concepts, four latents each."""
    folder = tmp_path_factory.mktemp("select")
    (folder / "concepts.yaml").write_text(
        "version: 1\nminimum: 1\ndefaults: {domain: objects}\n"
        f"pictures: {{jsonl: '{TINY}/pictures/labels.jsonl', image: file, "
        "concepts: concepts}\nconcepts: {dog: {}, cat: {}}\n"
        f"questions: {{objects: {{name: '{QUESTION}'}}}}\n"
    )
    file = ConceptFile.read(folder / "concepts.yaml")
    (folder / "harvest").mkdir()
    return SelectRequest(
        sae=TINY / "latents",
        site="vision",
        harvest=harvest_pictures(folder / "harvest", file),
        concepts=folder / "concepts.yaml",
        k=4,
        causal_candidates=4,
        causal_examples=3,
    )


@pytest.fixture(scope="module")
@starts_engine
def engine(bundle, dog, request_):
    own = dog.latents[:3]
    candidates = {
        candidate_name("vision", latent): {"vision": SiteEdit.uniform([latent], -4.0)}
        for latent in (*own, DEAD)
    }
    tried = [
        entry.latent
        for concept in select(request_).concepts.values()
        for entry in concept.latents
    ]
    candidates |= latent_candidates("vision", tried)
    everywhere = SiteEdit.uniform(range(0, 2048, 4), gamma=-1.0)
    candidates["wide"] = {"decoder.1": everywhere}
    candidates["both"] = {"vision": everywhere, "decoder.1": everywhere}
    saes = {site: entry.weights for site, entry in bundle.sites.items()}
    for number, stop in enumerate((1024, 2048)):
        part = SiteEdit.uniform(range(1024 * number, stop, 4), gamma=-1.0)
        candidates[f"part {number}"] = {"decoder.1": part}
    with (
        pytest.MonkeyPatch.context() as patch,
        EngineAsker.of_candidates(
            MODEL, saes, candidates, engine_args=ENGINE, most=2
        ) as engine,
    ):
        patch.setattr(vllm_engine, "WINDOW", 24)
        yield engine


def about(seed=None, prompt=QUESTION):
    """Ask about the random picture of a seed."""
    return Question(prompt=prompt, picture=None if seed is None else Blocks(seed))


SOME = tuple((token,) for token in range(4, 120))
"""Answers of one token each."""


def dogs(count, present=True):
    """Shipped pictures with a dog, or with another object."""
    rows = map(json.loads, (TINY / "pictures/labels.jsonl").read_text().splitlines())
    objects = Bundle.load(TINY / "latents", weights=False).catalogue.domains()[
        "objects"
    ]
    files = [
        TINY / "pictures" / row["file"]
        for row in rows
        if ("dog" in row["concepts"]) == present and row["foreground"] in objects
    ]
    return [PictureFile(file) for file in files[:count]]


def test_every_candidate_answers_as_transformers_does(engine):
    """Masks of one and two sites, other strengths and none, mixed in one batch."""
    reference = ReferenceModel(MODEL, Bundle.load(engine.bundle))
    names = [None, "wide", "both", *sorted(engine.names - {"wide", "both"})]
    cases = [(name, seed) for seed in (1, 2) for name in names]
    asks = [
        Ask(
            question=about(seed),
            forget=() if name is None else (name,),
            strength=0.5 if name == "wide" else 1.0,
            wanted=SOME,
        )
        for name, seed in cases
    ]
    seen = []
    answers = engine.ask(asks, lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, len(asks)) and seen[-1] == (len(asks), len(asks))
    firsts = set()
    for (_, seed), ask, answer in zip(cases, asks, answers, strict=True):
        want = reference.reply(
            support.Ask(seed, QUESTION, ask.forget, ask.strength, max_tokens=1)
        )
        assert answer.said == want.tokens
        close = [
            abs(answer.logprobs[token,] - value) < 3e-4
            for token, value in want.logprobs[0]
            if (token,) in answer.logprobs
        ]
        assert len(close) >= 3 and all(close)
        firsts.add(round(answer.logprobs[50,], 5))
    assert len(firsts) >= 6  # two pictures, unedited and under both wide edits


def test_a_plain_question_is_answered_the_same_in_any_company(engine):
    plain = Ask(question=about(3), wanted=((50,), (51,)))
    edited = [replace(plain, forget=(name,)) for name in sorted(engine.names)]
    (alone,) = engine.ask([plain])
    mixed = engine.ask([*edited, plain, *edited])
    assert mixed[len(edited)].logprobs == pytest.approx(alone.logprobs, abs=1e-5)
    for one, other in zip(mixed[: len(edited)], mixed[len(edited) + 1 :], strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    off = Ask(question=about(3), forget=("wide",), strength=0.0)
    assert engine.ask([off])[0].said == alone.said


def test_whole_answers_are_read_token_by_token(engine):
    """Each after those before it, as transformers goes on after the same words."""
    told = about(3, "Describe the picture.")
    written = Ask(question=told, max_tokens=3)
    (said,) = engine.ask([written])
    first, second, third = said.said
    other = (first, second, third + 1)
    (whole,) = engine.ask([replace(written, max_tokens=1, wanted=(said.said, other))])
    assert whole.said == said.said and whole.says([said.said])
    assert not whole.says([other])
    reference = ReferenceModel(MODEL, Bundle.load(engine.bundle))
    want = reference.reply(support.Ask(3, told.prompt, max_tokens=3))
    assert want.tokens == said.said
    likeliest = zip(want.tokens, want.logprobs, strict=True)
    assert whole.logprobs[said.said] == pytest.approx(
        sum(dict(values)[token] for token, values in likeliest), abs=1e-4
    )
    assert whole.logprobs[other] < whole.logprobs[said.said]


def test_candidates_of_one_question_act_together(engine):
    """Two halves are the whole, and neither half is."""
    named = (("wide",), ("part 0", "part 1"), ("part 0",), ("part 1",))
    asks = [Ask(question=about(5), forget=names, wanted=SOME) for names in named]
    whole, both, *halves = engine.ask(asks)
    assert both.logprobs == pytest.approx(whole.logprobs, abs=1e-4)
    for half in halves:
        differences = [abs(half.logprobs[t] - whole.logprobs[t]) for t in SOME]
        assert max(differences) > 0.01
    with pytest.raises(UnknownConceptError, match="part 7"):
        engine.ask([Ask(question=about(), forget=("part 0", "part 7"))])


def test_a_prompt_is_rendered_once_for_all_its_masks(engine, monkeypatch):
    rendered = []

    def counted(llm, messages, render=compat.rendered_chat):
        rendered.append(messages)
        return render(llm, messages)

    monkeypatch.setattr(compat, "rendered_chat", counted)
    asks = [
        Ask(question=about(seed, prompt), forget=names, wanted=((50,),))
        for prompt in ("What is this?", "And this?")
        for seed in (11, 12, None)
        for names in ((), ("wide",), ("both",))
    ]
    first = engine.ask(asks)
    assert len(rendered) == 6
    again = engine.ask(asks)
    assert len(rendered) == 6
    for one, other in zip(first, again, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
    # Without room for pictures each is prepared anew, and answers are the same.
    monkeypatch.setattr(engine, "_prompts", RenderedPrompts(picture_bytes=1))
    fresh = engine.ask(asks)
    assert len(rendered) == 6 + 2 * 2 * 3 + 2
    for one, other in zip(first, fresh, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_pictures_that_take_too_much_are_forgotten_oldest_first(monkeypatch):
    """The rest of a prompt stays; its picture is prepared again."""
    asked = []

    def rendered(llm, messages):
        (part, text) = messages[0]["content"]
        asked.append((text["text"], part["uuid"]))
        return {"prompt_token_ids": [1], "mm_kwargs": part["uuid"]}

    monkeypatch.setattr(compat, "rendered_chat", rendered)
    monkeypatch.setattr(compat, "picture_bytes", lambda pixels: 10)
    prompts = RenderedPrompts(picture_bytes=25)
    pictures = [Blocks(seed) for seed in (1, 2, 3)]
    digests = {id(one): f"p{one.seed}" for one in pictures}

    def ask(number, prompt):
        question = Question(prompt=prompt, picture=pictures[number])
        found = prompts.of(None, question, digests)
        assert found == {"prompt_token_ids": [1], "mm_kwargs": f"p{number + 1}"}

    for number in (0, 1, 0, 2, 0, 1):
        ask(number, "a")
    # The third picture took the second's place.
    assert asked == [("a", "p1"), ("a", "p2"), ("a", "p3"), ("a", "p2")]


def test_longer_answers_come_as_text(engine):
    question = Question(prompt=QUESTION, picture=dogs(1)[0])
    assert engine.ask([Ask(question=question, max_tokens=4)])[0].text == "dog"


def named(picture):
    """Ask for the dog's name."""
    return Question(prompt=QUESTION, picture=picture, kind=Kind.NAME, words=("dog",))


def test_dogs_latents_are_what_dog_hangs_on(engine, dog):
    tasks = {
        "dog": CausalTask(
            latents=(*dog.latents[:3], DEAD),
            questions=(
                *(named(picture) for picture in dogs(4)),
                *(
                    Question(prompt=QUESTION, picture=picture)
                    for picture in dogs(4, present=False)
                ),
            ),
        )
    }
    found = measure(engine, "vision", tasks)["dog"]
    assert list(found) == [*dog.latents[:3], DEAD]
    best = max(found.values(), key=lambda score: score.value())
    assert best.latent in dog.latents[:3]
    assert best.on_concept < -0.1
    assert abs(found[DEAD].on_concept) < -best.on_concept / 4
    # What was measured is the difference of two readings, each as the engine gives it.
    (token,) = beginnings(engine.tokenizer, ["dog"])
    both = [
        Ask(question=named(picture), forget=forget, wanted=(token,))
        for picture in dogs(4)
        for forget in ((), (candidate_name("vision", best.latent),))
    ]
    values = [answer.logprobs[token] for answer in engine.ask(both)]
    changes = [b - a for a, b in zip(values[::2], values[1::2], strict=True)]
    assert best.on_concept == pytest.approx(sum(changes) / 4, abs=1e-5)


def test_selecting_by_effect(engine, request_, monkeypatch):
    """``sauce select --score causal``, on the engine that runs here already."""
    asked: dict[str, object] = {}

    def running(model, saes, candidates, **options):
        asked.update(model=model)
        assert set(candidates) <= engine.names
        return contextlib.nullcontext(engine)

    monkeypatch.setattr(EngineAsker, "of_candidates", running)
    found = select(replace(request_, score="causal"))
    before = select(request_)
    assert asked["model"] == str(MODEL)
    for name, concept in found.concepts.items():
        latents = [entry.latent for entry in concept.latents]
        assert set(latents) == {e.latent for e in before.concepts[name].latents}
        effects = [entry.causal for entry in concept.latents]
        values = [-e.on_concept - max(0.0, -e.on_others) for e in effects if e]
        assert len(values) == 4 and values == sorted(values, reverse=True)
    dogs = [e.causal for e in found.concepts["dog"].latents]
    assert max(abs(effect.on_concept) for effect in dogs if effect) > 0.01


def test_what_it_cannot_do_is_refused(engine, bundle, tmp_path):
    with pytest.raises(UnknownConceptError, match="latent:vision"):
        engine.ask([Ask(question=about(), forget=("latent:vision:999",))])
    with pytest.raises(InvalidStrengthError):
        engine.ask([Ask(question=about(), forget=("wide",), strength=99.0)])
    with pytest.raises(ConfigError, match="at most 128 tokens"):
        many = tuple((token,) for token in range(129))
        engine.ask([Ask(question=about(), wanted=many)])
    (tmp_path / "a.png").write_bytes(b"no picture")
    broken = Question(prompt=QUESTION, picture=PictureFile(tmp_path / "a.png"))
    with pytest.raises(ActivationsError, match="is no picture"):
        engine.ask([Ask(question=broken)])
    assert engine.ask([Ask(question=about())])[0].said


def test_wrong_candidates_are_refused_before_an_engine_starts(bundle):
    saes = {"vision": bundle.sites["vision"].weights}
    edit = {"decoder.1": SiteEdit.uniform([1])}
    for candidates, wrong in (
        ({}, "no candidate"),
        ({"a": edit}, r"'decoder.1', which has no SAE"),
    ):
        opened = EngineAsker.of_candidates(MODEL, saes, candidates)
        with pytest.raises(ConfigError, match=wrong), opened:
            pass
    with pytest.raises(ConfigError, match="one question that the concept's name"):
        CausalTask((1,), (about(),))
    with pytest.raises(ConfigError, match="a site is"):
        candidate_name("nowhere", 1)


def test_the_temporary_bundle_goes_with_the_engine(engine):
    assert Path(engine.bundle).is_dir()
