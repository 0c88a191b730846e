# SPDX-License-Identifier: Apache-2.0
"""Score a concept's edit on the scoring split; generated answers are generated."""

from collections.abc import Mapping

from torch import Tensor

from tiny.concepts import CONCEPTS
from tiny.exam import Tiny, balanced_pictures, build_exam, pixels_of
from tiny.generation import generate_answers
from tiny.marking import (
    DESCRIBE,
    NAME,
    Answers,
    concept_scores,
    sample_rows,
)
from tiny.questions import mentions
from tiny.sheets import answer_logits
from vllm_sauce.concepts import TOKENS, VISION, Concept, SiteEdit
from vllm_sauce.errors import UnsupportedFeatureError
from vllm_sauce.models.shared_prefix import SharedPrefix
from vllm_sauce.models.site_edits import EditTensors
from vllm_sauce.sae import SAEWeights

SCORED_PICTURES = 40
"""Pictures with the concept, and again without it, that a concept is scored on."""
PER_FOREGROUND = 40
"""Pictures of each foreground concept that these are drawn from."""


def build_edits(
    saes: Mapping[str, SAEWeights],
    edits: Mapping[str, SiteEdit],
    *,
    fp8: bool = False,
) -> dict[str, EditTensors]:
    """Return the tensors of a concept's edits by site.

    Raises: UnsupportedFeatureError
    """
    for site, edit in edits.items():
        if site != VISION and edit.tokens != TOKENS:
            raise UnsupportedFeatureError(
                f"here every token of {site} is edited, this edit is of "
                f"{', '.join(edit.tokens)}: ask the server"
            )
    return {
        site: EditTensors.build(saes[site], edit, fp8=fp8)
        for site, edit in edits.items()
    }


class Scorer:
    """Holds the scoring split; its pictures are used for nothing else."""

    def __init__(
        self,
        tiny: Tiny,
        per_foreground: int = PER_FOREGROUND,
        seed: int = 0,
        style: str = "train",
    ) -> None:
        self.tiny, self.seed = tiny, seed
        pictures = balanced_pictures("scoring", per_foreground, style)
        self.exam = build_exam(tiny, pictures, seed)
        self.pixels = pixels_of(pictures)
        self.runner = SharedPrefix(tiny.model)

    def scores(
        self,
        concept: Concept,
        saes: Mapping[str, SAEWeights],
        pictures: int = SCORED_PICTURES,
        *,
        fp8: bool = False,
    ) -> dict[str, float | None]:
        """Return UAg, UAd, IRA, CRA, HM and, as ``base_...``, what holds unedited.

        ``fp8`` takes the SAEs' rows as a server with that ``pool_dtype`` holds them.
        """
        index = CONCEPTS.index(concept.name)
        rows = sample_rows(self.exam, index, pictures, pictures, self.seed)
        edits = build_edits(saes, concept.edits, fp8=fp8)
        edited = self._measure(index, rows, edits)
        plain = self._measure(index, rows, {})
        base = {f"base_{name}": value for name, value in plain.items() if name != "HM"}
        return {**edited, **base}

    def _measure(
        self, index: int, rows: Tensor, edits: Mapping[str, EditTensors]
    ) -> dict[str, float | None]:
        part = self.exam.rows(rows)
        logits = answer_logits(self.runner, part.sheet, part.vision, edits)
        answers = Answers.of(part, logits)
        right = answers.right.clone()
        # The exam reads descriptions word by word; here they are written freely.
        shown = part.present[:, index]
        for kind in (NAME, DESCRIBE):
            self._generate(index, rows, shown, kind, edits, right)
        scores = concept_scores(part, index, Answers(right, answers.said_no))
        return scores.to_json()

    def _generate(
        self,
        index: int,
        rows: Tensor,
        shown: Tensor,
        kind: int,
        edits: Mapping[str, EditTensors],
        right: Tensor,
    ) -> None:
        """Replace "right" by "mentions the concept" in the generated answers."""
        exam = self.exam
        asked = (exam.about[rows] == index) & (exam.kind == kind) & shown[:, None]
        places = asked.nonzero().tolist()
        prompts = [self._prompt(int(rows[row]), read) for row, read in places]
        texts = generate_answers(
            self.tiny.model,
            self.tiny.tokenizer,
            prompts,
            self.pixels[rows[[row for row, _ in places]]],
            edits,
        )
        for (row, read), text in zip(places, texts, strict=True):
            right[row, read] = float(mentions(text, CONCEPTS[index]))

    def _prompt(self, row: int, read: int) -> list[int]:
        """Return the prompt of a question, without any answer."""
        sheet = self.exam.sheet
        block = sheet.suffix_ids[row, sheet.read_block[read]].tolist()
        end = _answer_start(self.tiny, block)
        return [*sheet.prefix_ids.tolist(), *block[:end]]


def _answer_start(tiny: Tiny, block: list[int]) -> int:
    """Return where the answer begins: after the template's last words."""
    after = tiny.tokenizer(tiny.after, add_special_tokens=False).input_ids
    for start in range(len(block) - len(after), -1, -1):
        if block[start : start + len(after)] == after:
            return start + len(after)
    raise ValueError("the block does not hold the end of a prompt")
