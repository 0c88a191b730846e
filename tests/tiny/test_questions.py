# SPDX-License-Identifier: Apache-2.0
"""Questions are answerable, phrasings are separate, answers are one token."""

import numpy as np
import pytest
from tokenizers.decoders import DecodeStream

from tiny.concepts import CONCEPTS, DOMAINS, NOTHING
from tiny.conversations import Scene, draw_sequence, naming_turn, yes_no_turn
from tiny.language_training import collate
from tiny.questions import (
    HELD_OUT,
    TRAIN,
    answer_description,
    answer_name,
    mentions,
    naming_questions,
    yes_no_questions,
)
from tiny.tokenizer import build_processor, build_tokenizer
from tiny.vocabulary import encode, token_id

SCENE = Scene("dog", "blue", "wood")


def test_answers_are_single_known_tokens() -> None:
    for word in (*(answer_name(c) for c in CONCEPTS), "yes", "no", "none"):
        assert len(encode(word)) == 1
        assert encode(word) != [token_id("<unk>")]


def test_held_out_phrasings_are_never_trained() -> None:
    assert not set(TRAIN.describe) & set(HELD_OUT.describe)
    for domain in DOMAINS:
        assert not set(TRAIN.naming[domain]) & set(HELD_OUT.naming[domain])
        assert not set(TRAIN.yes_no[domain]) & set(HELD_OUT.yes_no[domain])


def test_a_question_says_which_concept_it_asks_about() -> None:
    for concept in CONCEPTS:
        for phrasings in (TRAIN, HELD_OUT):
            questions = yes_no_questions(concept, phrasings)
            assert all(mentions(text, concept) for text in questions)
    named = [q for d in DOMAINS for q in naming_questions(d)]
    assert not any(mentions(text, concept) for text in named for concept in CONCEPTS)


def test_yes_no_answers_are_true_and_balanced() -> None:
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(600):
        question, answer = yes_no_turn(rng, SCENE)
        shown = any(mentions(question, concept) for concept in SCENE.concepts)
        assert answer == ("yes" if shown else "no"), question
        answers.append(answer)
    assert 0.42 < answers.count("yes") / 600 < 0.58


def test_an_absent_domain_is_none() -> None:
    rng = np.random.default_rng(0)
    empty = Scene(NOTHING, "red", "sand")
    for _ in range(200):
        question, answer = naming_turn(rng, empty)
        asks_for_icon = any(
            question in TRAIN.naming[d] for d in ("objects", "sports", "emotions")
        )
        assert (answer == "none") == asks_for_icon


@pytest.mark.parametrize(
    ("scene", "text"),
    [
        (("apple", "red", "tile"), "an apple on red tile"),
        (("soccer", "gray", "sand"), "a soccer scene on gray sand"),
        (("love", "pink", "wood"), "a face of love on pink wood"),
        ((NOTHING, "pink", "wood"), "nothing on pink wood"),
    ],
)
def test_descriptions(scene: tuple[str, str, str], text: str) -> None:
    assert answer_description(*scene) == text
    assert token_id("<unk>") not in encode(text)
    assert not mentions(text, "cat")


def test_the_tokenizer_agrees_with_the_training_words() -> None:
    tokenizer = build_tokenizer()
    text = "USER: <image>\nWhat's the  ZYXQ object, please?! ASSISTANT:"
    plain = text.replace("<image>", "")
    assert tokenizer(plain).input_ids == encode(plain)
    assert tokenizer(text).input_ids.count(token_id("<image>")) == 1
    assert token_id("<unk>") in tokenizer(text).input_ids
    said = "an apple on red tile"
    assert tokenizer.decode([*encode(said), token_id("</s>")], True) == said


def test_a_streamed_answer_starts_without_a_blank() -> None:
    tokenizer = build_tokenizer()
    ids = [*encode("ASSISTANT:"), *encode("an apple on red tile")]
    stream = DecodeStream(skip_special_tokens=True)
    pieces = [stream.step(tokenizer.backend_tokenizer, i) or "" for i in ids]
    assert "".join(pieces[2:]) == "an apple on red tile"


def test_a_conversation_has_the_layout_it_was_trained_with() -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A"}]},
        {"role": "assistant", "content": "dog"},
        {"role": "user", "content": "B"},
    ]
    template = build_processor().tokenizer.apply_chat_template
    text = template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "USER: <image>\nA ASSISTANT: dog</s>USER: B ASSISTANT:"


def test_independent_turns_do_not_see_each_other() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        sequence = draw_sequence(rng, SCENE, 3)
        batch = collate([sequence])
        turns = np.array(sequence.turns)
        seen = batch.mask[0, 0].numpy()
        assert seen[:, 0].all()
        assert not np.triu(seen, 1).any()
        if turns.max() == 1:
            assert sequence.positions == list(range(len(turns)))
        else:
            other = (turns[:, None] != turns[None]) & (turns[None] > 0)
            assert not seen[other].any()
            first = [sequence.positions[turns.tolist().index(t)] for t in (1, 2, 3)]
            assert len(set(first)) == 1
