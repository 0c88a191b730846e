# SPDX-License-Identifier: Apache-2.0
"""Edits of some tokens alone, served: in chunks, from the cache, beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.engines import starts_engine
from tests.plugin.conftest import engine
from tests.plugin.random_bundle import random_sae
from tests.plugin.support import LAYER, LONG, Ask, ReferenceModel, cold, reply_of, run
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.concepts import SPARING, TOKENS, Catalogue, Concept, SiteEdit

pytestmark = pytest.mark.feature("prefix caching")

WHAT = "what is in the picture ?"
EDIT = SiteEdit.uniform(range(7, 40), gamma=-4.0, shift=-1.0, gate=0.05)
OTHER = SiteEdit.uniform(range(30, 60), gamma=-3.0, shift=-0.5, gate=0.05)
EDITS = {
    "everything": replace(EDIT, tokens=TOKENS),
    "sparing": replace(EDIT, tokens=SPARING),
    "the sink": replace(EDIT, tokens=("sink",)),
    "pictures": replace(OTHER, tokens=("image",)),
    "prompts": replace(EDIT, tokens=("prompt",)),
    "answers": replace(OTHER, tokens=("generated",)),
}


@pytest.fixture(scope="module")
def folder(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose concepts edit different tokens of one layer."""
    fingerprint = fingerprint_model(model_dir)
    assert fingerprint.text.hidden_size is not None
    sites = {LAYER: random_sae(2, fingerprint.text.hidden_size)}
    catalogue = Catalogue(
        Concept(name=name, domain="random", edits={LAYER: edit})
        for name, edit in EDITS.items()
    )
    path = tmp_path_factory.mktemp("tokens") / "b"
    Bundle.build(fingerprint, sites, catalogue).save(path)
    return path


@pytest.fixture(scope="module")
@starts_engine
def llm(model_dir: Path, folder: Path) -> Iterator[Any]:
    """An engine whose prefill is cut in the middle of pictures."""
    sauce = {"bundle": str(folder)}
    yield engine(model_dir, sauce, max_num_batched_tokens=24, max_num_seqs=6)


@pytest.fixture(scope="module")
def oracle(model_dir: Path, folder: Path) -> ReferenceModel:
    return ReferenceModel(model_dir, Bundle.load(folder))


@pytest.mark.parametrize("names", [*((n,) for n in EDITS), ("pictures", "answers")])
def test_the_tokens_that_are_named_are_edited(
    llm: Any, oracle: ReferenceModel, names: tuple[str, ...]
) -> None:
    """No others: as in transformers, where whole prompts are edited by position."""
    asks = [Ask(1, WHAT, names), Ask(2, LONG, names), Ask(None, LONG, names)]
    cold(llm)
    for ask, mine in zip(asks, run(llm, asks), strict=True):
        assert mine.close(oracle.reply(ask), 1e-3), ask


def test_each_of_a_batch_has_its_own_tokens_and_again_from_the_cache(
    llm: Any, oracle: ReferenceModel
) -> None:
    """More masks than requests fit: each needs up to four slots of its own."""
    mixed = [("pictures", "answers", "the sink"), ("prompts", "pictures"), ()]
    asks = [Ask(3, LONG, names) for names in (*((n,) for n in EDITS), *mixed)]
    cold(llm)
    first, again = run(llm, asks), run(llm, asks)
    # What edits prompts and answers otherwise reads no cache: see the next turn, below.
    alike = [bool({"prompts", "answers"} & {*ask.forget}) for ask in asks]
    assert [bool(reply.cached) for reply in again] == [not one for one in alike]
    for ask, mine, later in zip(asks, first, again, strict=True):
        want = oracle.reply(ask)
        assert mine.close(want, 1e-3) and later.close(want, 1e-3), ask


def test_all_requests_of_a_step_need_several_slots(
    llm: Any, oracle: ReferenceModel
) -> None:
    """As many masks as requests fit, and in one step more parts than requests."""
    names = ("the sink", "prompts", "answers")
    asks = [Ask(None, WHAT, names, strength=n / 6) for n in range(1, 7)]
    cold(llm)
    for ask, mine in zip(asks, run(llm, asks), strict=True):
        assert mine.close(oracle.reply(ask), 1e-3), ask


def test_what_comes_before_the_first_edited_token_is_the_plain_requests(
    llm: Any,
) -> None:
    """An edit of answers reads the prompt as everybody does; one of pictures where
    there is none changes nothing."""
    cold(llm)
    words = [Ask(None, LONG, names) for names in ((), ("answers",), ("pictures",))]
    plain, answers, pictures = (run(llm, [ask])[0] for ask in words)
    assert plain.tokens[0] == answers.tokens[0]
    assert plain.logprobs[0] == answers.logprobs[0]
    assert plain.logprobs[1] != answers.logprobs[1]
    assert pictures.same(plain)


def test_the_sink_alone_changes_what_all_say(llm: Any) -> None:
    """So sparing it is no small thing: this is what ruined answers."""
    cold(llm)
    plain, sink = run(llm, [Ask(None, WHAT), Ask(None, WHAT, ("the sink",))])
    assert not sink.close(plain, 1e-2)


@pytest.mark.parametrize("name", ["prompts", "answers", "sparing"])
def test_an_answer_is_a_prompt_in_the_next_turn(llm: Any, name: str) -> None:
    """What was cached while it was written is not what a prompt is edited to."""
    ask = Ask(None, LONG, (name,), max_tokens=70)
    cold(llm)
    (first,) = llm.generate([ask.prompt()], [ask.params()], use_tqdm=False)
    ids = [*first.prompt_token_ids, *first.outputs[0].token_ids]
    replies = []
    for _ in range(2):
        outputs = llm.generate(
            [{"prompt_token_ids": ids}], [ask.params()], use_tqdm=False
        )
        replies.append(reply_of(outputs[0]))
        cold(llm)
    warm, alone = replies
    assert warm.close(alone, 1e-3)
    # Where both are edited alike the cache is of use.
    assert bool(warm.cached) == (name == "sparing")
