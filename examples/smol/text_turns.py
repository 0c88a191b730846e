# SPDX-License-Identifier: Apache-2.0
"""Text turns that keep the language model speaking: it answers as it did untrained.

What is learnt is the whole distribution of each token of its own greedy answer, not
the answer alone: there is nothing to learn as long as nothing has changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from smol.model import Learner
from smol.sequences import START, TURN, Layout, collate

ANSWER_TOKENS = 24
_COUNTRIES = (
    "Germany",
    "Spain",
    "Portugal",
    "Greece",
    "Egypt",
    "Kenya",
    "India",
    "China",
    "Canada",
    "Mexico",
    "Brazil",
    "Peru",
    "Norway",
    "Sweden",
    "Poland",
    "Turkey",
)
_SUBJECTS = (
    "the moon",
    "bread",
    "a bicycle",
    "gravity",
    "rain",
    "the heart",
    "a volcano",
    "money",
    "photosynthesis",
    "the internet",
    "a library",
    "music",
    "chess",
    "a dog",
    "tennis",
    "anger",
    "wood",
    "the color red",
)
TRAIN = (
    *(f"What is the capital of {country}?" for country in _COUNTRIES),
    *(f"What is {subject}?" for subject in _SUBJECTS),
    *(f"Write one sentence about {subject}." for subject in _SUBJECTS),
    "Hello!",
    "Hi, how are you?",
    "Who are you?",
    "What can you do?",
    "Thank you for your help.",
    "Good night.",
    "Tell me a joke.",
    "What is 2 + 2?",
    "What is 10 minus 3?",
    "How many days are in a week?",
    "How many legs does a spider have?",
    "Which planet is the largest?",
    "Who wrote Hamlet?",
    "Who painted the Mona Lisa?",
    "When did the Second World War end?",
    "What language is spoken in Brazil?",
    "What do cows eat?",
    "Why is the sky blue?",
    "Why do leaves fall in autumn?",
    "How do I boil an egg?",
    "How do I learn to swim?",
    "How can I sleep better?",
    "Give me three ideas for dinner.",
    "Give me a name for a cat.",
    "List three fruits.",
    "List three colors.",
    "List the seasons of the year.",
    "Translate 'good morning' into French.",
    "What is the opposite of hot?",
    "Give a synonym for happy.",
    "What rhymes with cat?",
    "Write a short poem about the sea.",
    "Write the first line of a story.",
    "Write a Python function that adds two numbers.",
    "Write a thank-you note.",
    "Summarize what a computer does.",
    "Explain how a plane flies.",
    "Explain why we need water.",
    "Is the earth round?",
    "Is fire cold?",
    "Can fish breathe under water?",
    "Do birds have teeth?",
    "Should I eat vegetables?",
    "Describe a forest.",
    "Describe the picture.",
    "What is in the picture?",
    "What color is grass?",
    "What material are tables made of?",
    "Name a sport that is played with a ball.",
    "Name an emotion.",
)
HELD_OUT = (
    "What is the capital of France?",
    "What is the capital of Japan?",
    "What is the capital of Italy?",
    "What is the capital of Australia?",
    "What is the capital of Russia?",
    "What is a cat?",
    "What is a guitar?",
    "What is soccer?",
    "What is happiness?",
    "What is marble used for?",
    "What is an umbrella?",
    "What is democracy?",
    "What is a black hole?",
    "What is the sun made of?",
    "Write one sentence about winter.",
    "Write one sentence about coffee.",
    "Write one sentence about the ocean.",
    "Write a short poem about a tree.",
    "Write a Python function that reverses a string.",
    "Tell me a fact about elephants.",
    "Tell me about Albert Einstein.",
    "Who wrote Romeo and Juliet?",
    "Who was the first person on the moon?",
    "When was the Eiffel Tower built?",
    "What is 5 + 7?",
    "How many hours are in a day?",
    "How many continents are there?",
    "Which animal is the fastest?",
    "Which ocean is the largest?",
    "What do bees make?",
    "Why do we sleep?",
    "Why is the sea salty?",
    "How do I make tea?",
    "How do I tie a tie?",
    "How can I save money?",
    "Give me three tips for an interview.",
    "List three animals.",
    "List the days of the week.",
    "Translate 'thank you' into Spanish.",
    "What is the opposite of big?",
    "Explain how a battery works.",
    "Explain what a friend is.",
    "Is the sun a star?",
    "Can penguins fly?",
    "Do plants need light?",
    "Describe a beach.",
    "Describe your favorite food.",
    "What color is the sky?",
    "Name a musical instrument.",
    "Name a big city.",
)
"""Only ever used to measure."""


@dataclass(frozen=True)
class TextTurn:
    """A question, and what the untrained model says to it."""

    question: str
    said: list[int]
    """Its greedy answer, which may be cut off."""
    hidden: Tensor
    """What each token of the answer was read from. Shape [len(said), d_text]."""


@torch.no_grad()
def teach(
    learner: Learner, layout: Layout, questions: Sequence[str], folder: Path
) -> list[TextTurn]:
    """Return the answers of a model without LoRA; once written, they are read."""
    path = folder / "text.pt"
    if not path.exists():
        parts = [_teach(learner, layout, question) for question in questions]
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(parts, path)
    return [TextTurn(*part) for part in torch.load(path, weights_only=True)]


def _teach(
    learner: Learner, layout: Layout, question: str
) -> tuple[str, list[int], Tensor]:
    asked = list(layout.encode(START + question + TURN))
    said: list[int] = []
    cache: Any = None
    ids = torch.tensor([asked])
    while len(said) < ANSWER_TOKENS and layout.end not in said:
        output = learner.trunk(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        said.append(int(learner.head(output.last_hidden_state[0, -1]).argmax()))
        ids = torch.tensor([said[-1:]])
    batch = collate([layout.text_row([(question, said)])])
    hidden = learner.trunk(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    return question, said, hidden[batch.predicts]
