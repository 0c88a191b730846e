# SPDX-License-Identifier: Apache-2.0
"""The comparison of scores: what its causal ranking reads."""

import math

import pytest
import torch

from tiny.compare_selection import (
    Comparison,
    Naming,
    count_latents,
    mean_over_all,
)
from tiny.concepts import CONCEPTS
from tiny.exam import LATENTS_FOLDER, Tiny, balanced_pictures, build_exam
from tiny.marking import NAME, sample_rows
from tiny.sheets import answer_logits
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import VISION, SiteEdit
from vllm_sauce.concepts.scores import SCORES, ranked
from vllm_sauce.models.shared_prefix import SharedPrefix
from vllm_sauce.models.site_edits import EditTensors


@pytest.fixture(scope="module")
def tiny():
    return Tiny.load()


@pytest.fixture(scope="module")
def exam(tiny):
    return build_exam(tiny, balanced_pictures("selection", 2), 0, longest_block=13)


def test_a_causal_score_is_what_the_whole_exam_reads(tiny, exam):
    sae = Bundle.load(LATENTS_FOLDER).sites[VISION].weights
    dog = CONCEPTS.index("dog")
    counted = count_latents(sae, exam)
    pos, neg = counted.group(2 * dog), counted.group(2 * dog + 1)
    tried = ranked(SCORES["share"](pos, neg), pos, 8)
    sizes = Comparison(causal_pictures=2)
    found = Naming(tiny, sae, exam).scores(dog, tried, sizes)
    assert int((found > -math.inf).sum()) == 8
    # The same from all twelve answers of each picture.
    rows = sample_rows(exam, dog, 2, 2, sizes.seed)
    part = exam.rows(rows)
    runner = SharedPrefix(tiny.model)
    names = int((part.kind == NAME).sum())
    best = int(found.argmax())
    edit = EditTensors.build(sae, SiteEdit.uniform([best], gamma=0.0))
    plain, edited = (
        answer_logits(runner, part.sheet, part.vision, edits)[:, :names].log_softmax(-1)
        for edits in ({}, {VISION: edit})
    )
    changes = []
    for row in range(4):
        domains = exam.domain_of[part.about[row, :names]].tolist()
        same = int(exam.domain_of[dog])
        read = domains.index(same) if same in domains else 0
        token = (
            int(part.expected[row, read]) if row < 2 else int(plain[row, read].argmax())
        )
        changes.append(float(edited[row, read, token] - plain[row, read, token]))
    want = -sum(changes[:2]) / 2 - max(0.0, -sum(changes[2:]) / 2)
    assert float(found[best]) == pytest.approx(want, abs=2e-5)
    assert want > 1e-3


def test_groups_are_those_with_and_without(tiny, exam):
    sae = Bundle.load(LATENTS_FOLDER).sites[VISION].weights
    counted = count_latents(sae, exam)
    red = CONCEPTS.index("red")
    shown = exam.present[:, red]
    acts = torch.cat([sae.encode(x) for x in exam.vision[shown]])
    group = counted.group(2 * red)
    assert group.num_samples == int(shown.sum())
    assert torch.allclose(group.mean_acts, acts.double().mean(0), atol=1e-6)


def test_saeurons_gate_is_the_mean_over_all(tiny, exam):
    sae = Bundle.load(LATENTS_FOLDER).sites[VISION].weights
    red = CONCEPTS.index("red")
    counted = count_latents(sae, exam)
    acts = torch.cat([sae.encode(x) for x in exam.vision]).double()
    gate = mean_over_all(counted.group(2 * red), counted.group(2 * red + 1))
    assert torch.allclose(gate, acts.mean(0), atol=1e-6)
