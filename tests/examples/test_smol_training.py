# SPDX-License-Identifier: Apache-2.0
"""How sauce-smol is trained: what it reads, what is kept of it, and that it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from smol import train, warm_start
from smol.assemble import CHAT_TEMPLATE, IMAGE, build_tokenizer
from smol.model import Learner
from smol.questions import (
    HELD_OUT,
    TRAIN,
    answer_description,
    answer_name,
    answer_yes_no,
    draw_question,
)
from smol.sequences import Layout, collate
from smol.train import Trainer, Training
from smol.weights import projector_and_changes, save_weights
from tests.smollm2 import smollm2
from tiny.concepts import CONCEPTS, NOTHING
from tiny.conversations import Scene
from tiny.questions import mentions
from tiny.tokenizer import build_processor

SCENE = Scene("dog", "red", "wood")
WIDTH = 32


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers, with SmolLM2's tokenizer."""
    folder = tmp_path_factory.mktemp("language")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("turns", [1, 2])
def test_a_row_is_what_the_template_makes_of_a_conversation(turns: int) -> None:
    """To the last token, or what was learnt would not be what is served."""
    layout = Layout(smollm2())
    said = [("What is this?", "It is a dog."), ("Is it red?", "Yes, it is red.")]
    row = layout.picture_row(said[:turns], conversation=True)
    messages = []
    for number, (question, answer) in enumerate(said[:turns]):
        shown = [{"type": "image"}] if number == 0 else []
        asked = [*shown, {"type": "text", "text": question}]
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answer})
    processor = build_processor(build_tokenizer(smollm2()), CHAT_TEMPLATE)
    text = processor.apply_chat_template(messages)
    white = Image.new("RGB", (80, 60), "white")
    made = processor(text=text, images=white)["input_ids"][0]
    token = processor.tokenizer.convert_tokens_to_ids(IMAGE)
    assert made.count(token) == 49
    # Behind the last answer's end the template has a line break.
    assert [0 if one == token else one for one in made[:-1]] == row.ids


def test_turns_see_the_picture_and_themselves() -> None:
    layout = Layout(smollm2())
    row = layout.picture_row([("A?", "Yes."), ("Longer than that?", "No.")])
    batch = collate([row, layout.text_row([("Hello!", [5, 2])])])
    sees = batch.mask[0, 0] == 0
    owners = torch.tensor(row.owners)
    for at in range(len(row.ids)):
        seen = owners[sees[at][: len(row.ids)]]
        assert set(seen.tolist()) == {0, int(owners[at])}
        assert sees[at].nonzero().max() == at
    assert row.positions == list(range(len(row.ids)))
    # What is to be learnt of the row without a picture is its answer.
    assert batch.targets[-2:].tolist() == [5, 2]


def test_answers_name_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    for foreground in ("dog", "tennis", "love", NOTHING):
        scene = Scene(foreground, "red", "wood")
        named = [c for c in CONCEPTS if mentions(answer_description(scene), c)]
        assert set(named) == set(scene.concepts)
        for _ in range(50):
            question = draw_question(rng, scene)
            if question.kind == "yes":
                assert any(mentions(question.text, c) for c in scene.concepts)
            if question.kind == "no":
                assert not any(mentions(question.text, c) for c in scene.concepts)
    for concept in CONCEPTS:
        assert [c for c in CONCEPTS if mentions(answer_name(concept), c)] == [concept]
        assert answer_yes_no(concept, True).startswith("Yes")
        assert answer_yes_no(concept, False).startswith("No")


def test_phrasings_that_measure_are_not_learnt() -> None:
    learnt = {q for qs in (*TRAIN.naming.values(), *TRAIN.yes_no.values()) for q in qs}
    learnt |= set(TRAIN.describe)
    held = [*HELD_OUT.naming.values(), *HELD_OUT.yes_no.values(), HELD_OUT.describe]
    assert not learnt & {q for questions in held for q in questions}


def test_what_is_kept_is_what_was_learnt(language: Path, tmp_path: Path) -> None:
    """LoRA merged into a Llama and a plain projector say what the learner says."""
    learner = Learner(language, seed=1)
    learner.add_lora()
    projector = learner.projector
    with torch.no_grad():
        for _, lora in learner.loras():
            lora.B.normal_(0, 0.3)
        projector.mean.normal_()
        projector.scale.uniform_(0.5, 2)
        projector.spread.fill_(0.3)
    save_weights(learner, tmp_path / "weights.safetensors")
    kept, changes = projector_and_changes(tmp_path / "weights.safetensors")
    hidden = torch.randn(2, 49, 256)
    x = hidden @ kept["linear_1.weight"].T + kept["linear_1.bias"]
    x = torch.nn.functional.gelu(x) @ kept["linear_2.weight"].T + kept["linear_2.bias"]
    with torch.no_grad():
        assert torch.allclose(x, projector(hidden), atol=0.02)
    plain = LlamaForCausalLM.from_pretrained(language, dtype=torch.float32).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        before = plain.model(input_ids=ids).last_hidden_state
        for name, change in changes.items():
            plain.model.get_parameter(name).add_(change)
        after = plain.model(input_ids=ids).last_hidden_state
        learnt = learner.trunk(input_ids=ids).last_hidden_state.float()
    assert len(changes) == 4
    assert (after - learnt).abs().max() < 0.2 * (after - before).abs().max()


def test_a_run_that_was_interrupted_goes_on_as_if_it_had_not(
    language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "TRAIN", ("Hello!", "What is rain?", "Who are you?"))
    monkeypatch.setattr(train, "curve_point", lambda *_: {"yes": [0, 1]})
    monkeypatch.setattr(warm_start, "STEPS", 2)
    few = {"pictures": 2, "turns": 2, "text_turns": 2, "decay_steps": 1}
    for folder, ends in (("whole", [4]), ("cut", [3, 4])):
        for end in ends:
            # A run of three steps ends with a small rate: one of four is cut there.
            config = Training(steps=4, save_every_steps=1, **few)
            trainer = Trainer(language, tmp_path / folder, 0, config)
            if end != config.steps:
                monkeypatch.setattr(trainer, "step", stopping(trainer.step, end))
                with pytest.raises(KeyboardInterrupt):
                    trainer.run()
            else:
                trainer.run()
    whole, cut = (tmp_path / name / "weights.safetensors" for name in ("whole", "cut"))
    assert whole.read_bytes() == cut.read_bytes()
    lines = (tmp_path / "cut" / "curve.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    steps = [line["step"] for line in told if "loss" in line]
    assert steps == [1, 2, 3, 4]
    # Every third step has a row of text.
    assert [line["text_kl"] is None for line in told if "loss" in line] == [
        *(False, True, True),
        False,
    ]


def stopping(step: object, end: int) -> object:
    """Return a trainer's step that is interrupted at a number."""

    def interrupted(number: int) -> None:
        if number == end:
            raise KeyboardInterrupt
        assert callable(step)
        step(number)

    return interrupted
