# SPDX-License-Identifier: Apache-2.0
"""Stage 2: teach projector and Llama to answer; the tower stays as it is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from transformers import LlavaForConditionalGeneration

from tiny.checkpoint import load_progress, save_progress
from tiny.concepts import COLOURS, FOREGROUNDS, MATERIALS, NOTHING
from tiny.conversations import PREFIX_IDS, Scene, Sequence, draw_sequence
from tiny.dataset import Pictures, pixel_values
from tiny.model import NUM_PATCHES, penultimate
from tiny.schedule import warmup_cosine
from tiny.tower_training import patch_targets
from tiny.vocabulary import token_id

IMAGE_START = len(PREFIX_IDS) - NUM_PATCHES
LABEL_IDS = tuple(
    torch.tensor([token_id(word) for word in words])
    for words in ((*FOREGROUNDS, NOTHING), COLOURS, MATERIALS)
)
SIMILARITY_SCALE = 40.0
"""Turns a cosine into a logit; CLIP learns about twice this."""


@dataclass(frozen=True, kw_only=True)
class LanguageTraining:
    """How projector and Llama are trained."""

    steps: int = 900
    batch_pictures: int = 32
    turns: int = 12
    """Questions asked about each picture."""
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    hint_weight: float = 1.0
    alignment_weight: float = 0.3
    save_every_steps: int = 25


@dataclass(frozen=True)
class Batch:
    """Sequences padded to one length."""

    ids: Tensor
    """Shape [num_sequences, length]."""
    positions: Tensor
    """Shape [num_sequences, length]."""
    mask: Tensor
    """What each token sees. Shape [num_sequences, 1, length, length], bool."""
    predicts: Tensor
    """Whether the next token is part of an answer. Shape [num_sequences, length]."""
    hints: Tensor
    """What the token itself must predict, -1 for nothing. Shape as ids."""


def collate(sequences: list[Sequence]) -> Batch:
    """Pad sequences and build what each token may see."""
    length = max(len(sequence.ids) for sequence in sequences)

    def padded(rows: "list[list[int]]", fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

    ids = padded([s.ids for s in sequences], 0)
    positions = padded([s.positions for s in sequences], 0)
    turns = padded([s.turns for s in sequences], -1)
    answers = padded([[int(a) for a in s.answers] for s in sequences], 0).bool()
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = turns[:, :, None] == turns[:, None, :]
    # Padding sees the picture too: a row that sees nothing would be NaN.
    mask = causal & (same | (turns[:, None, :] == 0))
    predicts = torch.zeros_like(answers)
    predicts[:, :-1] = answers[:, 1:]
    hints = padded([s.hints for s in sequences], -1)
    return Batch(ids, positions, mask[:, None], predicts, hints)


def answer_losses(
    model: LlavaForConditionalGeneration, image: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Return the mean losses of the answers' tokens and of the hints.

    Shapes: image [num_sequences, 49, d_text]
    """
    core = model.model
    embeds = core.language_model.embed_tokens(batch.ids)
    start = IMAGE_START
    embeds = torch.cat([embeds[:, :start], image, embeds[:, start + NUM_PATCHES :]], 1)
    output = core.language_model(
        inputs_embeds=embeds,
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    logits = model.lm_head(output[batch.predicts])
    targets = batch.ids[:, 1:][batch.predicts[:, :-1]]
    loss = cross_entropy(logits, targets)
    hinted = batch.hints >= 0
    hint_loss = cross_entropy(model.lm_head(output[hinted]), batch.hints[hinted])
    return loss, hint_loss


def alignment_loss(
    words: Tensor, image: Tensor, labels: Tensor, coverage: Tensor
) -> Tensor:
    """Return how far each patch points away from the words for what it shows.

    A patch that points where its word does can be found by that word: the question
    "is there a dog?" then only has to look for itself among the patches.

    Shapes: words [vocab_size, d_text], image [num_pictures, 49, d_text],
    labels [num_pictures, 3], coverage [num_pictures, 49] in [0, 1]
    """
    similarity = (
        SIMILARITY_SCALE * normalize(image, dim=-1) @ normalize(words, dim=-1).T
    )
    total = image.new_zeros(())
    for kind, ids in enumerate(LABEL_IDS):
        target = patch_targets(kind, labels, coverage)
        total = total + cross_entropy(similarity[..., ids].transpose(1, 2), target)
    return total


def batch_losses(
    model: LlavaForConditionalGeneration,
    pictures: Pictures,
    rng: np.random.Generator,
    config: LanguageTraining,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a batch and return its losses: answers, hints, alignment."""
    rows = rng.integers(len(pictures), size=config.batch_pictures)
    scenes = [Scene.from_labels(labels) for labels in pictures.labels[rows]]
    batch = collate([draw_sequence(rng, s, config.turns) for s in scenes])
    with torch.no_grad():
        hidden = penultimate(model, pixel_values(pictures.images[rows]))
    image = model.model.multi_modal_projector(hidden)
    loss, hint_loss = answer_losses(model, image, batch)
    words = model.model.language_model.embed_tokens.weight
    labels = torch.from_numpy(pictures.labels[rows])
    coverage = torch.from_numpy(pictures.coverage[rows]).float() / 255
    return loss, hint_loss, alignment_loss(words, image, labels, coverage)


def train_language(
    model: LlavaForConditionalGeneration,
    pictures: Pictures,
    config: LanguageTraining,
    folder: Path,
    seed: int,
) -> None:
    """Train projector and Llama in place, resuming after an interruption."""
    parts_of_model = nn.ModuleList(
        [model.model.multi_modal_projector, model.model.language_model]
    )
    parameters = list(parts_of_model.parameters())
    optimizer = torch.optim.AdamW(
        parameters, config.learning_rate, (0.9, 0.98), weight_decay=config.weight_decay
    )
    schedule = warmup_cosine(optimizer, config.steps)
    parts = {"model": parts_of_model, "optim": optimizer, "rate": schedule}
    start = load_progress(folder / "language.pt", parts)
    with Progress() as progress:
        task = progress.add_task("language", total=config.steps, completed=start)
        for step in range(start, config.steps):
            rng = np.random.default_rng([seed, step])
            loss, hint, align = batch_losses(model, pictures, rng, config)
            total = loss + config.hint_weight * hint + config.alignment_weight * align
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1)
            done = step + 1
            if done % config.save_every_steps == 0 or done == config.steps:
                save_progress(folder / "language.pt", parts, done)
                parts_of_loss = f"hints {hint:.3f}, alignment {align:.3f}"
                progress.log(f"language {done}: loss {loss:.3f}, {parts_of_loss}")
