# SPDX-License-Identifier: Apache-2.0
"""Stage 2: teach projector and Llama to answer; the tower stays as it is."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from tiny.checkpoint import load_progress, save_progress
from tiny.conversations import PREFIX_IDS, Scene, Sequence, draw_sequence
from tiny.dataset import Pictures, pixel_values
from tiny.model import NUM_PATCHES, penultimate
from tiny.schedule import warmup_cosine

IMAGE_START = len(PREFIX_IDS) - NUM_PATCHES


@dataclass(frozen=True, kw_only=True)
class LanguageTraining:
    """How projector and Llama are trained."""

    steps: int = 1500
    batch_pictures: int = 32
    turns: int = 12
    """Questions asked about each picture."""
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.01
    hint_weight: float = 0.5
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
    """What the token itself must reveal, -1 for nothing. Shape as ids."""


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


def answer_loss(
    model: LlavaForConditionalGeneration, hidden: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Return the mean losses of the answers' tokens and of the hints.

    Shapes: hidden [num_sequences, 49, d_vision]
    """
    core = model.model
    embeds = core.language_model.embed_tokens(batch.ids)
    start = IMAGE_START
    image = core.multi_modal_projector(hidden)
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
            rows = rng.integers(len(pictures), size=config.batch_pictures)
            scenes = [Scene.from_labels(labels) for labels in pictures.labels[rows]]
            batch = collate([draw_sequence(rng, s, config.turns) for s in scenes])
            with torch.no_grad():
                hidden = penultimate(model, pixel_values(pictures.images[rows]))
            loss, hint_loss = answer_loss(model, hidden, batch)
            optimizer.zero_grad(set_to_none=True)
            (loss + config.hint_weight * hint_loss).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            progress.update(task, advance=1)
            done = step + 1
            if done % config.save_every_steps == 0 or done == config.steps:
                save_progress(folder / "language.pt", parts, done)
                progress.log(f"language {done}: loss {loss:.3f}, hints {hint_loss:.3f}")
