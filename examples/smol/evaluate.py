# SPDX-License-Identifier: Apache-2.0
"""How well does sauce-smol answer as served? Whole greedy answers of a vLLM engine.

``PYTHONPATH=examples python -m smol.evaluate MODEL --language SMOLLM2 --out FILE`` asks
phrasings that were never trained on about pictures that were never trained on, in the
styles of training and in one unseen, and text questions that SmolLM2 is asked too.
"""

import argparse
import gc
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from smol.assemble import CHAT_TEMPLATE
from smol.questions import NAME, NO, YES, Question, held_out_questions
from smol.text_turns import ANSWER_TOKENS, HELD_OUT
from smol.world import scene_of
from tiny.concepts import CONCEPTS, DOMAINS, HELD_OUT_STYLE, TRAIN_STYLES
from tiny.conversations import Scene
from tiny.evaluate import evaluation_pictures
from tiny.questions import mentions
from tiny.world import Picture
from vllm_sauce.evaluation.questions import first_word
from vllm_sauce.measuring.endpoint import picture_part
from vllm_sauce.measuring.scores import wilson

SEED = 1_000_600
STYLES = {"trained": TRAIN_STYLES, "unseen": (HELD_OUT_STYLE,)}
DESCRIPTION = ("two of three described", "all three described", "false descriptions")
Marks = dict[str, list[bool]]


def messages(text: str, picture: Picture | None = None) -> list[dict[str, Any]]:
    """Return a conversation of one question, as a client sends it."""
    if picture is None:
        return [{"role": "user", "content": text}]
    content = [picture_part(picture.image), {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def answers(
    model: Path,
    asked: Sequence[list[dict[str, Any]]],
    dtype: str,
    tokens: int,
    template: str | None = None,
) -> list[str]:
    """Return what an engine without the plugin says to conversations, greedily."""
    from vllm import LLM, SamplingParams

    llm = LLM(str(model), dtype=dtype, max_model_len=512, max_num_seqs=32, seed=0)
    params = SamplingParams(temperature=0, max_tokens=tokens)
    outputs = llm.chat(list(asked), params, chat_template=template)
    said = [output.outputs[0].text.strip() for output in outputs]
    del llm
    gc.collect()
    return said


def mark(question: Question, scene: Scene, said: str) -> Marks:
    """Return what is right about an answer, by what is counted."""
    exact = {"exact": [said == question.answer]}
    if question.kind == NAME:
        # The right answer has one concept's word, that of the domain asked about.
        (right,) = [c for c in CONCEPTS if mentions(question.answer, c)]
        hit = mentions(said, right)
        return {"name": [hit], f"name, {question.domain}": [hit], **exact}
    if question.kind in (YES, NO):
        hit = first_word(said) == question.kind
        return {"yes/no": [hit], question.kind: [hit], **exact}
    named = [mentions(said, concept) for concept in scene.concepts]
    false = [mentions(said, c) for c in CONCEPTS if c not in scene.concepts]
    hits = (sum(named) >= 2, all(named), any(false))
    return {c: [h] for c, h in zip(DESCRIPTION, hits, strict=True)} | exact


def about_pictures(
    model: Path, per_concept: int, dtype: str
) -> dict[str, tuple[Marks, list[dict[str, str]]]]:
    """Return marks and answers by style."""
    rng = np.random.default_rng(SEED)
    asked = []
    for name, styles in STYLES.items():
        for picture in evaluation_pictures(styles, per_concept):
            for question in held_out_questions(rng, scene_of(picture)):
                asked.append((name, picture, question))
    conversations = [messages(q.text, picture) for _, picture, q in asked]
    said = answers(model, conversations, dtype, tokens=24)
    found: dict[str, tuple[Marks, list[dict[str, str]]]] = {}
    for (name, picture, question), text in zip(asked, said, strict=True):
        marks, lines = found.setdefault(name, (defaultdict(list), []))
        for column, hits in mark(question, scene_of(picture), text).items():
            marks[column] += hits
        lines.append({"asked": question.text, "right": question.answer, "said": text})
    return found


def about_text(model: Path, language: Path, dtype: str) -> list[dict[str, str]]:
    """Return the answers of both models to the same tokens."""
    conversations = [messages(text) for text in HELD_OUT]
    said = answers(model, conversations, dtype, ANSWER_TOKENS)
    # Its own template would put a system message first.
    before = answers(language, conversations, dtype, ANSWER_TOKENS, CHAT_TEMPLATE)
    return [
        {"asked": question, "SmolLM2": old, "said": new}
        for question, old, new in zip(HELD_OUT, before, said, strict=True)
    ]


def main() -> None:
    """Ask, print a table, write all answers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--language", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-concept", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    found = about_pictures(arguments.model, arguments.per_concept, arguments.dtype)
    text = about_text(arguments.model, arguments.language, arguments.dtype)
    same = [line["SmolLM2"] == line["said"] for line in text]
    table = Table("what is right", *found, title=f"{arguments.dtype}, held out")
    columns = ["name", *(f"name, {domain}" for domain in DOMAINS), "yes/no", "yes"]
    columns += ["no", *DESCRIPTION, "exact"]
    figures: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for column in columns:
        cells = []
        for name, (marks, _) in found.items():
            hits = marks[column]
            told = wilson(hits)
            figures[name][column] = [sum(hits), told.n, told.low, told.high]
            cells.append(
                f"{told.value:.3f} [{told.low:.3f}, {told.high:.3f}], n {told.n}"
            )
        table.add_row(column, *cells)
    told = wilson(same)
    table.add_row(
        "text, as SmolLM2", f"{sum(same)} of {told.n} [{told.low:.2f}, {told.high:.2f}]"
    )
    Console(width=100).print(table)
    lines = {name: lines for name, (_, lines) in found.items()}
    record = {"figures": figures, "text": text, "answers": lines}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
