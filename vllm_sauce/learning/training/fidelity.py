# SPDX-License-Identifier: Apache-2.0
"""What a model loses when an SAE's output replaces its activations.

The model answers each sample greedily. Then prompt and answer are read again: as they
are, with the site's activations replaced by the SAE's, and with them ablated. Compared
are the next-token distributions from which the answer was written.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.activations.row_choice import RowChoice
from vllm_sauce.activations.shards import Role
from vllm_sauce.concepts import is_vision
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.files import file_sha256
from vllm_sauce.models.loaded_model import LoadedModel
from vllm_sauce.models.site_hooks import SiteFn, site_hook
from vllm_sauce.sae import SAEWeights


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Means over all scored tokens; losses and divergences in nats."""

    kl: float
    """Divergence of the model with the SAE from the model."""

    ablated_kl: float
    """The same with the activations ablated."""

    clean_loss: float
    """Cross-entropy of the answer, which is the model's own."""

    replaced_loss: float
    ablated_loss: float
    num_samples: int
    num_tokens: int

    @property
    def loss_recovered(self) -> float | None:
        """Share of the loss that ablation costs and the SAE does not.

        (ablated - replaced) / (ablated - clean): 1 is perfect, 0 no better than
        ablation. None where ablation costs nothing.
        """
        cost = self.ablated_loss - self.clean_loss
        if abs(cost) < 1e-9:
            return None
        return (self.ablated_loss - self.replaced_loss) / cost

    def to_json(self) -> dict[str, float | int | None]:
        """Return the figures, in the words that reports use."""
        recovered = self.loss_recovered
        told = asdict(self).items()
        return {
            "loss_recovered": None if recovered is None else round(recovered, 4),
            **{name.removeprefix("num_"): round(value, 5) for name, value in told},
        }


@torch.inference_mode()
def measure_fidelity(
    loaded: LoadedModel,
    site: str,
    sae: SAEWeights,
    ablation: Tensor,
    samples: Iterable[Sample],
    *,
    choice: RowChoice | None = None,
    max_tokens: int = 16,
) -> Fidelity:
    """Measure an SAE in its model; only rows of the kinds it was trained on change.

    ``ablation`` takes the activations' place when they are ablated: their mean, or 0.

    Shapes: ablation [d_model]
    Raises: ConfigError if there are no samples, or none with a picture for "vision"
    """
    sae, gone = sae.to(loaded.device), ablation.to(loaded.device)
    # The model as it is, with the SAE, and without the site.
    fns: tuple[SiteFn, ...] = (
        lambda x: x,
        lambda x: sae.decode(sae.encode(x), x),
        lambda x: gone.expand_as(x),
    )
    totals, num_samples, num_tokens = torch.zeros(5, dtype=torch.float64), 0, 0
    for sample in samples:
        if is_vision(site) and sample.picture is None:
            continue
        prompt = loaded.inputs([sample])
        # Read again, it would want a picture.
        mark = (
            {"suppress_tokens": [word]} if (word := loaded.image_token_id) >= 0 else {}
        )
        tokens = loaded.model.generate(
            **prompt, max_new_tokens=max_tokens, do_sample=False, **mark
        )
        rows = replaced_rows(loaded, site, prompt, tokens, choice or RowChoice())
        logits = []
        for fn in fns:
            with site_hook(loaded.model, site, _where(rows, fn)):
                logits.append(_answer_logits(loaded, prompt, tokens))
        answer = tokens[0, prompt["input_ids"].shape[1] :]
        totals += _sums(logits, answer)
        num_samples, num_tokens = num_samples + 1, num_tokens + len(answer)
    if not num_tokens:
        raise ConfigError(f"no samples to measure the SAE of {site} on")
    kl, gone_kl, clean_loss, replaced_loss, gone_loss = (totals / num_tokens).tolist()
    return Fidelity(
        kl, gone_kl, clean_loss, replaced_loss, gone_loss, num_samples, num_tokens
    )


def _answer_logits(
    loaded: LoadedModel, prompt: dict[str, Tensor], tokens: Tensor
) -> Tensor:
    """Return the logits the answer's tokens were drawn from.

    Shapes: tokens [1, num_tokens] -> [num_answer_tokens, vocabulary] float32
    """
    length = prompt["input_ids"].shape[1]
    inputs = loaded.continued(prompt, tokens[:, length:])
    logits = loaded.model(**inputs, use_cache=False).logits
    scored: Tensor = logits[0, length - 1 : -1].float()
    return scored


def replaced_rows(
    loaded: LoadedModel,
    site: str,
    prompt: dict[str, Tensor],
    tokens: Tensor,
    choice: RowChoice,
) -> Tensor:
    """Return which of a site's rows are of the kinds the SAE was trained on.

    Shapes: tokens [1, num_tokens] -> [num_tokens], or [1] at "vision": all or none
    """
    if is_vision(site):
        return torch.tensor([Role.IMAGE in choice.roles], device=tokens.device)
    ids = tokens[0]
    role = torch.full_like(ids, Role.TEXT)
    role[ids == loaded.image_token_id] = Role.IMAGE
    role[prompt["input_ids"].shape[1] :] = Role.GENERATED
    rows = torch.isin(role, torch.tensor(sorted(choice.roles), device=ids.device))
    rows[: choice.skip] = False
    return rows


def _where(rows: Tensor, fn: SiteFn) -> SiteFn:
    # The tower's rows are [.., patches, d]; one flag stands for them all.
    def changed(x: Tensor) -> Tensor:
        return torch.where(rows[:, None], fn(x.float()).to(x.dtype), x)

    return changed


def _sums(logits: Sequence[Tensor], answer: Tensor) -> Tensor:
    """Return sums over tokens, in the order of Fidelity's fields."""
    logs = [one.log_softmax(-1) for one in logits]
    losses = [-log.gather(1, answer[:, None]).sum() for log in logs]
    divergences = [
        (logs[0].exp() * (logs[0] - log)).sum() for log in (logs[1], logs[2])
    ]
    return torch.stack([*divergences, *losses]).double().cpu()


def measurable_samples(
    samples: Sequence[dict[str, Any]],
    held_out: Tensor,
    folders: Sequence[Path],
    limit: int,
) -> list[Sample]:
    """Return up to ``limit`` held-out samples whose pictures can be found.

    A picture is known by its bytes: it is looked for where the sample's key says, then
    in the folders. Samples whose picture is nowhere are left out.
    """
    found: list[Sample] = []
    known: dict[str | None, Path] = {}
    there = (path for folder in folders for path in sorted(folder.rglob("*")))
    files = filter(Path.is_file, there)

    def find(digest: str, key: str) -> Path | None:
        if _digest(Path(key)) == digest:
            return Path(key)
        # No file is read before it is needed.
        while digest not in known and (file := next(files, None)):
            known[_digest(file)] = file
        return known.get(digest)

    for line in map(samples.__getitem__, held_out.tolist()):
        if len(found) == limit:
            break
        key, digest = str(line["key"]), line.get("picture")
        path = find(digest, key) if digest else None
        if digest and path is None:
            continue
        found.append(
            Sample(
                key=key,
                prompt=str(line["prompt"]),
                picture=PictureFile(path) if path else None,
                concepts=tuple(line.get("concepts", ())),
            )
        )
    return found


def _digest(path: Path) -> str | None:
    """Return the digest of a file's bytes; None of what cannot be read."""
    try:
        return file_sha256(path)
    except (OSError, ValueError):
        return None
