# SPDX-License-Identifier: Apache-2.0
"""Whether a model's weights are still those that its edit was proven with.

Whoever has an engine may run what he likes in its workers: methods of an extension,
functions. Two things tell of new weights: a call of the model's own ``load_weights``,
and numbers that are others after such a call than before it.
"""

from __future__ import annotations

import hashlib
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from vllm_sauce.plugin.startup import settings
from vllm_sauce.plugin.worker.runtime import SauceRuntime, runtime_of

_WORDS = 1 << 22
"""Of eight bytes, that are weighted at once: what is held beside the weights."""


def watch(model: Any, runtime: SauceRuntime) -> None:
    """Take the proof back whenever the model loads weights."""
    original = model.load_weights

    def load_weights(*args: Any, **kwargs: Any) -> Any:
        runtime.lose_weights()
        return original(*args, **kwargs)

    model.load_weights = load_weights


def look(worker: Any) -> None:
    """Take the proof back if the weights are others than at the last look."""
    asleep = "weights" in getattr(worker, "_sauce_asleep", ())
    # Asleep they have no memory to be read, or changed; nothing is proven then.
    if asleep or settings.section_of(worker.vllm_config) is None:
        return
    model = worker.model_runner.model
    runtime = runtime_of(model)
    assert runtime is not None
    before, runtime.weights_seen = runtime.weights_seen, checksum(model)
    if before not in (None, runtime.weights_seen):
        runtime.lose_weights()


def checksum(model: nn.Module) -> str:
    """Return what tells a model's parameters and buffers from others, where they are.

    Each eight bytes are weighted by their place, so numbers that change places tell,
    too. Four times the weights' bytes are moved, none of them from the device.
    """
    found = hashlib.sha256()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        sums = [int(one) for one in _sums(tensor.detach())]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {sums}".encode())
    return found.hexdigest()


def _sums(tensor: Tensor) -> list[Tensor]:
    data = tensor.contiguous().reshape(-1).view(torch.uint8)
    whole = data.numel() // 8 * 8
    # What a view begins at need not be a multiple of eight bytes.
    rest = data[whole:].to(torch.int64)
    sums = [(rest * torch.arange(1, len(rest) + 1, device=data.device)).sum()]
    for part in data[:whole].split(8 * _WORDS):
        words = (part if part.data_ptr() % 8 == 0 else part.clone()).view(torch.int64)
        # Odd, so that no bit of a word is lost to a sum that goes round.
        places = 2 * torch.arange(len(words), device=data.device) + 1
        sums.append((words * places).sum())
    return sums
