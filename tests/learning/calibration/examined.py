# SPDX-License-Identifier: Apache-2.0
"""Trials of one concept's edits by hand; the engine is a list here."""

from dataclasses import replace

from vllm_sauce.evaluation.asking.asker import Answer
from vllm_sauce.evaluation.metrics import Outcome
from vllm_sauce.evaluation.questionnaire import Questionnaire
from vllm_sauce.evaluation.questions import Kind, Part, Question
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.examiner import Sure, Trial
from vllm_sauce.learning.calibration.search import _worth
from vllm_sauce.learning.calibration.setting import Action, SiteSetting
from vllm_sauce.learning.selection.selection_file import RankedLatent, SelectedConcept

CONFIG = CalibrationConfig(
    k=(1, 2), gates=(0.0,), actions=("scale 0", "scale -4"), soft=0.0, screen=1.0
)


def choices_of(count, config=CONFIG):
    """Two scores that rank alike: their settings differ in name alone."""
    latents = [
        RankedLatent(
            latent=latent,
            scores={"share": -float(i), "rate": -float(i)},
            mean_acts=(1.0, 0.1),
            firing_rate=(0.5, 0.1),
            max_acts=(4.0, 2.0),
        )
        for i, latent in enumerate(range(count, 0, -1))
    ]
    found = SelectedConcept(domain="d", num_samples=(9, 9), latents=latents)
    return EditChoices.of("dog", {"vision": found}, config)


class OneWord:
    """A tokenizer to which all words are one."""

    def encode(self, text, add_special_tokens):
        return [7]

    def decode(self, ids):
        return "word"


class Engine:
    """Says "dog", or what ``says`` makes of an ask, and keeps what it was asked."""

    tokenizer = OneWord()

    def __init__(self, says=lambda ask: "dog"):
        self.asked, self.says = [], says

    def ask(self, asks, progress=lambda done, total: None):
        self.asked.append(list(asks))
        return [Answer(self.says(ask), (7,), {(7,): -0.1}) for ask in asks]


class Questions(Questionnaire):
    """One question of each part that a score needs."""

    def __init__(self):
        pass

    def questions(self, name, positives, negatives, watched=0):
        return [
            Question(
                part=part, kind=Kind.NAME, prompt="?", picture=None, words=("dog",)
            )
            for part in (Part.UAG, Part.CRA_OTHER)
        ]


def setting(action="scale 0", **values):
    start = SiteSetting(
        site="vision", ranking="share", k=1, gate=0.0, action=Action.parse(action)
    )
    return (replace(start, **values),)


def trial(objective, one, hm=0.9, iras=1.0, worst=("", 0.0), sure=None):
    """Return a trial that is sure of what it found, unless said otherwise."""
    scores = Outcome(UAg=hm, UAd=hm, IRA=iras, CRA=1.0)
    sure = sure or Sure(forgetting=hm, loss=1 - iras, worst=worst[1])
    return Trial(one, scores, 1.0, objective, sure, worst)


def choose(examiner, trials):
    """Return the best of some trials."""
    return max(trials, key=lambda one: _worth(examiner.config, one))
