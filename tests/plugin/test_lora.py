# SPDX-License-Identifier: Apache-2.0
"""Adapters of the language model under masks: each request has its own of both."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.engines import starts_engine
from tests.plugin.conftest import engine
from tests.plugin.support import (
    LONG,
    Ask,
    ReferenceModel,
    Reply,
    cold,
    reply_of,
)
from vllm_sauce.bundle import Bundle

RANK, ALPHA = 4, 8
pytestmark = pytest.mark.feature("LoRA of the language model")

ADAPTERS = (None, "first", "second")
MASKS: tuple[tuple[str, ...], ...] = ((), ("seen",), ("read",), ("both",))


class Adapted:
    """sauce-tiny in transformers, an adapter's products added to its weights."""

    def __init__(self, reference: ReferenceModel) -> None:
        self.reference = reference
        self.layers = {
            name: module
            for name, module in reference.model.named_modules()
            if "language_model.layers" in name and isinstance(module, torch.nn.Linear)
        }
        self.changes: dict[str | None, dict[str, torch.Tensor]] = {None: {}}

    def write(self, adapter: str, folder: Path) -> Path:
        """Write a random adapter of every linear layer as PEFT does, and keep it."""
        gen = torch.Generator().manual_seed(len(self.changes))
        tensors, changes = {}, {}
        for name, layer in self.layers.items():
            A = 0.2 * torch.randn(RANK, layer.in_features, generator=gen)
            B = 0.2 * torch.randn(layer.out_features, RANK, generator=gen)
            # The checkpoint's names, which older versions gave the modules, too.
            where = name.replace("model.language_model.", "language_model.model.")
            tensors[f"base_model.model.{where}.lora_A.weight"] = A
            tensors[f"base_model.model.{where}.lora_B.weight"] = B
            changes[name] = ALPHA / RANK * B @ A
        self.changes[adapter] = changes
        folder.mkdir()
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "r": RANK,
            "lora_alpha": ALPHA,
            "bias": "none",
            "target_modules": sorted({name.split(".")[-1] for name in self.layers}),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    def reply(self, adapter: str | None, ask: Ask) -> Reply:
        """Answer with an adapter's weights."""
        changes = self.changes[adapter]
        with torch.no_grad():
            for name, change in changes.items():
                self.layers[name].weight += change
        try:
            return self.reference.reply(ask)
        finally:
            with torch.no_grad():
                for name, change in changes.items():
                    self.layers[name].weight -= change


@pytest.fixture(scope="module")
def adapted(model_dir: Path, bundle_dir: Path) -> Adapted:
    return Adapted(ReferenceModel(model_dir, Bundle.load(bundle_dir)))


@pytest.fixture(scope="module")
def folders(
    adapted: Adapted, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: adapted.write(name, folder / name) for name in ADAPTERS[1:]}


@pytest.fixture(scope="module")
@starts_engine
def llm(model_dir: Path, bundle_dir: Path) -> Iterator[Any]:
    # One place more than there are adapters: on a CPU, vLLM 0.32 answers requests
    # without one by what lies in the last.
    yield engine(
        model_dir,
        {"bundle": str(bundle_dir)},
        enable_lora=True,
        max_loras=3,
        max_lora_rank=8,
        max_num_seqs=4,
    )


def run(
    llm: Any,
    folders: dict[str, Path],
    asks: Sequence[tuple[str | None, Ask]],
) -> list[Reply]:
    """Send requests as one batch, each with its adapter."""
    from vllm.lora.request import LoRARequest

    requests = [
        None
        if name is None
        else LoRARequest(name, ADAPTERS.index(name), str(folders[name]))
        for name, _ in asks
    ]
    outputs = llm.generate(
        [ask.prompt() for _, ask in asks],
        [ask.params() for _, ask in asks],
        lora_request=requests,
        use_tqdm=False,
    )
    return [reply_of(output) for output in outputs]


def test_each_of_a_batch_has_its_adapter_and_its_mask(
    llm: Any, folders: dict[str, Path], adapted: Adapted
) -> None:
    """Twelve requests, three at a time of a kind: each as transformers has it."""
    asks = [
        (adapter, Ask(number % 3, LONG, mask))
        for number, (mask, adapter) in enumerate(itertools.product(MASKS, ADAPTERS))
    ]
    cold(llm)
    replies = run(llm, folders, asks)
    for (adapter, ask), reply in zip(asks, replies, strict=True):
        assert reply.close(adapted.reply(adapter, ask), 1e-3), (adapter, ask)
    # An adapter changes what is said, and so does a mask under it.
    same = [one.close(other, 1e-2) for one, other in itertools.combinations(replies, 2)]
    assert not any(same)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((None, "read"), ("first", "read")),
        (("first", "read"), ("second", "read")),
        (("first", "both"), ("first", None)),
        (("first", None), ("first", "seen")),
        (("second", "seen"), (None, "seen")),
    ],
)
def test_no_leak_through_the_caches(
    llm: Any,
    folders: dict[str, Path],
    first: tuple[str | None, str | None],
    second: tuple[str | None, str | None],
) -> None:
    """A warm engine answers as a cold one, whoever filled its caches before."""
    one, other = (
        (adapter, Ask(5, LONG, () if mask is None else (mask,)))
        for adapter, mask in (first, second)
    )
    cold(llm)
    (expected,) = run(llm, folders, [other])
    cold(llm)
    run(llm, folders, [one])
    (warm,) = run(llm, folders, [other])
    assert warm.close(expected)
    assert warm.cached == 0
    (again,) = run(llm, folders, [other])
    assert again.close(expected) and again.cached >= 32
