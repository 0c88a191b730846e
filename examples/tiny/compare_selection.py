# SPDX-License-Identifier: Apache-2.0
"""Which score finds the latents that forget best? One table over all sixty concepts.

``PYTHONPATH=examples python -m tiny.compare_selection`` ranks the vision site's latents
by every score on the selection pictures, edits the best 16 of each alike (gamma -2,
gate 0) and measures what that forgets on the scoring pictures.
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from tiny.concepts import CONCEPTS, DOMAIN_OF, DOMAINS
from tiny.exam import (
    LATENTS_FOLDER,
    MODEL_FOLDER,
    Tiny,
    balanced_pictures,
    build_exam,
)
from tiny.marking import (
    NAME,
    Answers,
    Exam,
    concept_scores,
    sample_rows,
)
from tiny.questions import answer_name
from tiny.sheets import answer_logits
from tiny.user_pictures import write_labelled
from tiny.world import Picture
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import VISION, SiteEdit
from vllm_sauce.concepts.scores import SCORES, CausalScore, ranked
from vllm_sauce.concepts.statistics import GroupStatistics, LatentStatistics
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.evaluation.metrics import NAMES, Outcome
from vllm_sauce.learning.selection.attribution import (
    attribution_questions,
    attribution_scores,
)
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.shared_prefix import SharedPrefix, Sheet
from vllm_sauce.models.site_edits import EditTensors
from vllm_sauce.sae import SAEWeights

LONGEST_BLOCK = 13
"""Tokens of the longest question that is asked."""


def concept_tokens(tiny: Tiny) -> Tensor:
    """Return the token of each concept's name. Shape [num_concepts]."""
    return torch.tensor([tiny.token(answer_name(c)) for c in CONCEPTS])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sizes of the comparison."""

    k: int = 16
    gamma: float = -2.0
    selection_per_foreground: int = 16
    scoring_per_foreground: int = 8
    scored_pictures: int = 10
    """With the concept, and again without it."""
    causal_candidates: int = 48
    """Latents of the largest S(i) whose effect on answers is measured."""
    causal_pictures: int = 5
    """With the concept, and again without it."""
    seed: int = 0


def count_latents(sae: SAEWeights, exam: Exam) -> LatentStatistics:
    """Count the vision site's latents with and without each concept."""
    found = LatentStatistics(2 * len(CONCEPTS), sae.d_sae)
    for rows in track(torch.arange(len(exam)).split(16), "statistics"):
        x = exam.vision[rows]
        sample = torch.arange(len(rows)).repeat_interleave(x.shape[1])
        shown = exam.present[rows]
        groups = torch.stack([shown, ~shown], dim=2).flatten(1)
        found.add(sae.encode(x.flatten(0, 1)), sample, groups)
    return found


class Naming:
    """The naming questions of an exam alone: what causal scores are read from."""

    def __init__(self, tiny: Tiny, sae: SAEWeights, exam: Exam) -> None:
        self.runner, self.sae, self.exam = SharedPrefix(tiny.model), sae, exam
        self.tokens = concept_tokens(tiny)

    def scores(
        self, concept: int, latents: tuple[int, ...], sizes: Comparison
    ) -> Tensor:
        """Return what removing each latent takes from answers; -inf if not tried.

        Shapes: -> [d_sae]
        """
        with_it, without = self._pages(concept, sizes)
        found = torch.full((self.sae.d_sae,), float("-inf"))
        before = [self._read(*page, None) for page in (with_it, without)]
        said = before[1].argmax(-1, keepdim=True)
        tokens = self.tokens[concept].expand(len(before[0]), 1), said
        base = [b.gather(-1, t) for b, t in zip(before, tokens, strict=True)]
        for latent in latents:
            edit = EditTensors.build(self.sae, SiteEdit.uniform([latent], gamma=0.0))
            change = []
            pages = (with_it, without)
            for page, token, plain in zip(pages, tokens, base, strict=True):
                # A latent that does not fire on a picture changes nothing there.
                fires = (edit(page[1]) != page[1]).any((1, 2))
                total = 0.0
                if bool(fires.any()):
                    part = page[0].rows(fires.nonzero()[:, 0]), page[1][fires]
                    after = self._read(*part, edit).gather(-1, token[fires])
                    total = float((after - plain[fires]).sum())
                change.append(total / len(fires))
            found[latent] = CausalScore(latent, *change).value()
        return found

    def _read(self, sheet: Sheet, vision: Tensor, edit: EditTensors | None) -> Tensor:
        edits = {} if edit is None else {VISION: edit}
        return answer_logits(self.runner, sheet, vision, edits)[:, 0].log_softmax(-1)

    def _pages(
        self, concept: int, sizes: Comparison
    ) -> tuple[tuple[Sheet, Tensor], tuple[Sheet, Tensor]]:
        """Return pictures with and without a concept, each asked for its domain."""
        count = sizes.causal_pictures
        rows = sample_rows(self.exam, concept, count, count, sizes.seed)
        domain = self.exam.domain_of[concept]
        names = (self.exam.kind == NAME).nonzero()[:, 0]
        pages = []
        for part in (rows[:count], rows[count:]):
            about = self.exam.about[part][:, names]
            # Pictures without the domain are asked for their first concept.
            asked = (self.exam.domain_of[about] == domain).int().argmax(1)
            sheet = self.exam.sheet.rows(part)
            each = torch.arange(len(part))
            only = Sheet(
                sheet.prefix_ids,
                sheet.suffix_ids[each, asked][:, None],
                torch.zeros(1, dtype=torch.long),
                sheet.read_at[each, names[asked]][:, None],
                sheet.pad_id,
            )
            pages.append((only, self.exam.vision[part]))
        return pages[0], pages[1]


def attributed(
    sae: SAEWeights, pictures: Sequence[Picture], sizes: Comparison
) -> dict[str, Tensor]:
    """Return each concept's attribution of every latent, as sauce select finds it.

    Shapes: -> [d_sae] by concept
    """
    with TemporaryDirectory() as name, torch.inference_mode(False):
        write_labelled(Path(name), pictures, minimum=1)
        file = ConceptFile.read(Path(name) / "concepts.yaml")
        loaded = LoadedModel.load(MODEL_FOLDER)
        asked = attribution_questions(file, None, seed=sizes.seed)
        return attribution_scores(loaded, sae, VISION, file, asked)


@dataclass(frozen=True)
class Row:
    """One score's edits, measured."""

    name: str
    found: Mapping[str, Outcome]
    latents: float
    """Mean number of latents edited."""
    seconds: float
    """Spent on ranking all concepts."""

    def mean(self, name: str, domain: str | None = None) -> float:
        """Return the mean of one score over concepts, of one domain or all."""
        chosen = [c for c in CONCEPTS if domain in (None, DOMAIN_OF[c])]
        return sum(getattr(self.found[c], name) for c in chosen) / len(chosen)


def measure(
    runner: SharedPrefix,
    sae: SAEWeights,
    exam: Exam,
    edits: Mapping[str, SiteEdit],
    sizes: Comparison,
) -> dict[str, Outcome]:
    """Return the scores of every concept's edit on the scoring pictures."""
    found = {}
    for index, concept in enumerate(CONCEPTS):
        count = sizes.scored_pictures
        part = exam.rows(sample_rows(exam, index, count, count, sizes.seed))
        edit = {VISION: EditTensors.build(sae, edits[concept])} if edits else {}
        logits = answer_logits(runner, part.sheet, part.vision, edit)
        found[concept] = concept_scores(part, index, Answers.of(part, logits))
    return found


Ranking = Callable[[int, GroupStatistics, GroupStatistics], Tensor]


def rankings(
    naming: Naming, sae: SAEWeights, pictures: Sequence[Picture], sizes: Comparison
) -> dict[str, tuple[Ranking, bool]]:
    """Return every way to rank, and whether its edits have SAeUron's gate."""
    effects = cache(lambda: attributed(sae, pictures, sizes))

    def attribution(concept: int, pos: GroupStatistics, neg: GroupStatistics) -> Tensor:
        return effects()[CONCEPTS[concept]]

    def causal(concept: int, pos: GroupStatistics, neg: GroupStatistics) -> Tensor:
        tried = ranked(SCORES["share"](pos, neg), pos, sizes.causal_candidates)
        return naming.scores(concept, tried, sizes)

    def chance(concept: int, pos: GroupStatistics, neg: GroupStatistics) -> Tensor:
        generator = torch.Generator().manual_seed(sizes.seed + concept)
        return torch.rand(sae.d_sae, generator=generator)

    def known(name: str) -> Ranking:
        return lambda concept, pos, neg: SCORES[name](pos, neg)

    ways = {name: (known(name), name == "saeuron") for name in SCORES}
    slow = {"causal": (causal, False), "attribution": (attribution, False)}
    return {"random": (chance, False), **ways, **slow}


def mean_over_all(pos: GroupStatistics, neg: GroupStatistics) -> Tensor:
    """Return mu(D), the mean activation over all samples: SAeUron edits above it.

    Shapes: -> [d_sae]
    Source: SAeUron (arXiv:2501.18052), intervention
    """
    return (pos.sum_acts + neg.sum_acts) / (pos.num_tokens + neg.num_tokens)


def compare(sizes: Comparison) -> list[Row]:
    """Rank by every score and measure the edits."""
    tiny = Tiny.load()
    sae = Bundle.load(LATENTS_FOLDER).sites[VISION].weights
    runner = SharedPrefix(tiny.model)
    pictures = balanced_pictures("selection", sizes.selection_per_foreground)
    scored = balanced_pictures("scoring", sizes.scoring_per_foreground)
    selection, scoring = (
        build_exam(tiny, drawn, sizes.seed, longest_block=LONGEST_BLOCK)
        for drawn in (pictures, scored)
    )
    counted = count_latents(sae, selection)
    groups = [
        (counted.group(2 * c), counted.group(2 * c + 1)) for c in range(len(CONCEPTS))
    ]
    rows = [Row("(no edit)", measure(runner, sae, scoring, {}, sizes), 0, 0)]
    ways = rankings(Naming(tiny, sae, selection), sae, pictures, sizes)
    for name, (score, gated) in track(ways.items(), "scores"):
        started = time.perf_counter()
        edits = {}
        for index, (pos, neg) in enumerate(groups):
            latents = ranked(score(index, pos, neg), pos, sizes.k)
            gate = mean_over_all(pos, neg)
            edits[CONCEPTS[index]] = SiteEdit(
                latents=latents,
                gamma=(sizes.gamma,) * len(latents),
                shift=(0.0,) * len(latents),
                gate=tuple(float(gate[j]) if gated else 0.0 for j in latents),
            )
        seconds = time.perf_counter() - started
        width = sum(len(edit.latents) for edit in edits.values()) / len(edits)
        rows.append(
            Row(name, measure(runner, sae, scoring, edits, sizes), width, seconds)
        )
    return rows


def as_table(rows: list[Row], sizes: Comparison) -> Table:
    """Lay the comparison out, one score a row."""
    title = (
        f"sauce-tiny, vision site, k {sizes.k}, gamma {sizes.gamma:g}: mean over "
        f"{len(CONCEPTS)} concepts, %"
    )
    table = Table("score", *NAMES, "HM", *DOMAINS, "latents", "s", title=title)
    for row in rows:
        cells = [f"{100 * row.mean(name):.1f}" for name in (*NAMES, "HM")]
        cells += [f"{100 * row.mean('HM', domain):.1f}" for domain in DOMAINS]
        table.add_row(row.name, *cells, f"{row.latents:.1f}", f"{row.seconds:.1f}")
    return table


def main() -> None:
    """Print the table; HM of each domain is in its last columns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--k", type=int, default=Comparison.k)
    parser.add_argument("--gamma", type=float, default=Comparison.gamma)
    parser.add_argument("--json", type=Path, help="Also write all scores here.")
    arguments = parser.parse_args()
    sizes = Comparison(k=arguments.k, gamma=arguments.gamma)
    with torch.inference_mode():
        rows = compare(sizes)
    Console(width=120).print(as_table(rows, sizes))
    if arguments.json:
        found = {
            row.name: {c: scores.to_json() for c, scores in row.found.items()}
            for row in rows
        }
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
