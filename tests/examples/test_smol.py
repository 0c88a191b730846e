# SPDX-License-Identifier: Apache-2.0
"""sauce-smol: the model that was measured, said by vLLM as by transformers, edited too.

It has what sauce-tiny lacks: a sink at its first token, a vocabulary of bytes, a chat
template, answers in sentences.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vllm_sauce
from smol.assemble import LEARNT
from smol.evaluate import messages
from tests.places import ROOT
from tests.plugin.models.compared import (
    Asked,
    Reference,
    answers,
    largest,
    start,
)
from tests.plugin.random_bundle import random_sae
from tests.smol import smol
from tiny.pictures import LabelledPicture, shipped_pictures
from tiny.questions import mentions
from tiny.world import Picture
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.errors import SauceError

LAYERS = {"vision": 256, "decoder.12": 576, "decoder.24": 576}
"""Sites that are edited here, and their widths."""
TOKENS = 12
QUESTIONS = (
    "What object is in the picture?",
    "Describe the picture.",
    "Is there a dog in the picture?",
)
CAPITAL = "What is the capital of France?"
SHIPPED = ROOT / "examples" / "smol" / "bundle"
SEEN = ("car", "cat", "dog", "guitar", "umbrella")
"""Concepts of the shipped bundle, of which pictures are shipped."""


def test_what_was_learnt_is_small() -> None:
    assert LEARNT.stat().st_size < 2_000_000


def drawn(shipped: LabelledPicture) -> Picture:
    """Return a shipped picture as one that was just drawn."""
    import numpy as np

    return Picture(
        shipped.image,
        shipped.foreground,
        shipped.colour,
        shipped.material,
        shipped.style,
        np.zeros((7, 7), np.float32),
    )


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """A dog and a tennis ball."""
    found = {p.foreground: p for p in reversed(shipped_pictures())}
    return [drawn(found[name]) for name in ("dog", "tennis")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random SAEs: "seen" at the tower, "read" behind two layers, "both"."""
    folder = tmp_path_factory.mktemp("bundle") / "b"
    edit = SiteEdit.uniform(range(7, 40), gamma=-4.0, shift=-1.0, gate=0.05)
    places = {"seen": ["vision"], "read": list(LAYERS)[1:], "both": list(LAYERS)}
    concepts = [
        Concept(name=name, domain="random", edits=dict.fromkeys(sites, edit))
        for name, sites in places.items()
    ]
    saes = {s: random_sae(i, width) for i, (s, width) in enumerate(LAYERS.items())}
    Bundle.build(fingerprint_model(smol()), saes, Catalogue(concepts)).save(folder)
    return folder


@pytest.fixture(scope="module")
def reference(bundle: Path) -> Reference:
    return Reference(smol(), bundle)


@pytest.fixture(scope="module")
def llm(bundle: Path) -> Iterator[Any]:
    """An engine that has proven its edits on this model."""
    yield start(smol(), bundle, dtype="float32", max_model_len=256, max_num_seqs=16)
    gc.collect()


def prompt(reference: Reference, question: str, shown: bool) -> str:
    """Return a question in the model's own template."""
    parts = [{"type": "image"}] if shown else []
    content = [*parts, {"type": "text", "text": question}]
    text: str = reference.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    return text


@pytest.mark.engine
def test_a_chat_is_answered_as_by_transformers(
    llm: Any, reference: Reference, pictures: list[Picture]
) -> None:
    """From messages as a client sends them to the last token of a free answer."""
    from vllm import SamplingParams

    asked = [(p, question) for p in pictures for question in QUESTIONS]
    conversations = [messages(question, p) for p, question in asked]
    conversations.append(messages(CAPITAL))
    params = SamplingParams(temperature=0, max_tokens=16)
    outputs = llm.chat(conversations, params, use_tqdm=False)
    said = [output.outputs[0].text for output in outputs]
    for (shown, question), output in zip(asked, outputs, strict=False):
        given = Asked(prompt(reference, question, True), shown.image)
        inputs = reference.inputs(given)
        assert output.prompt_token_ids == inputs["input_ids"][0].tolist()
        written = reference.model.generate(**inputs, max_new_tokens=16, do_sample=False)
        right = written[0, inputs["input_ids"].shape[1] :].tolist()
        assert list(output.outputs[0].token_ids) == right
        # Its sentence has an end.
        assert right[-1] == reference.model.generation_config.eos_token_id
    assert said[0] == "It is a dog."
    assert said[2].startswith("Yes") and said[5].startswith("No")
    assert mentions(said[4], "tennis")
    assert said[-1] == "The capital of France is Paris."


@pytest.mark.engine
def test_edits_are_as_in_transformers(
    llm: Any, reference: Reference, pictures: list[Picture]
) -> None:
    """At the tower and behind two layers, in one batch with what forgets nothing."""
    masks: list[tuple[str, ...]] = [("seen",), (), ("read",), ("both",)]
    asked = [
        Asked(prompt(reference, QUESTIONS[1], True), pictures[1].image, mask)
        for mask in masks
    ]
    worst, least = 0.0, float("inf")
    unedited = reference.logprobs(asked[1])
    for one, (_, steps) in zip(asked, answers(llm, asked, 1), strict=True):
        worst = max(worst, largest(steps[0], reference.logprobs(one)))
        if one.forget:
            least = min(least, largest(steps[0], unedited))
    assert worst < 1e-3
    assert least > 100 * worst, "the edits move more than the two differ by"


@pytest.mark.engine
def test_what_is_written_under_an_edit_is_as_in_transformers(
    llm: Any, reference: Reference
) -> None:
    """Free text: every token that is written passes the edited layers, too."""
    asked = [
        Asked(prompt(reference, CAPITAL, False), forget=forget)
        for forget in ((), ("read",))
    ]
    found = answers(llm, asked, TOKENS)
    for one, (tokens, steps) in zip(asked, found, strict=True):
        right, told = reference.answer(one, TOKENS)
        assert tokens == right
        assert max(map(largest, steps, told)) < 1e-3
    assert found[0][0] != found[1][0]


@pytest.mark.engine
def test_the_shipped_bundle_forgets_as_served(caplog: pytest.LogCaptureFixture) -> None:
    """Calibrated, not random, on pictures that it was neither fitted nor chosen on.

    Named in at most a fifth of them, which is the bundle's floor.
    """
    from vllm import SamplingParams

    llm = start(smol(), SHIPPED, dtype="bfloat16", max_model_len=256, max_num_seqs=32)
    assert "sauce stamp" not in caplog.text
    mine = [p for p in shipped_pictures() if p.foreground in SEEN]
    asked = [(QUESTIONS[0], drawn(p)) for p in mine]

    def says(forget: list[str]) -> list[bool]:
        params = [
            SamplingParams(temperature=0, max_tokens=14, extra_args=forgetting(name))
            for name in forget
        ]
        outputs = llm.chat([messages(*one) for one in asked], params, use_tqdm=False)
        return [
            mentions(output.outputs[0].text, p.foreground)
            for output, p in zip(outputs, mine, strict=True)
        ]

    def forgetting(name: str) -> dict[str, Any] | None:
        return vllm_sauce.forget(name) if name else None

    plain = says([""] * len(mine))
    gone = says([p.foreground for p in mine])
    other = [SEEN[(SEEN.index(p.foreground) + 1) % len(SEEN)] for p in mine]
    kept = says(other)
    few = 0.1 * len(mine)
    assert len(mine) >= 45
    assert sum(plain) >= len(mine) - few
    assert sum(gone) <= 2 * few
    assert sum(p and not k for p, k in zip(plain, kept, strict=True)) <= few
    with pytest.raises(SauceError, match="bicycle"):
        says(["bicycle"] * len(mine))
