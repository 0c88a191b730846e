# SPDX-License-Identifier: Apache-2.0
"""What tells a model's weights from others."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vllm_sauce.plugin.worker import weights
from vllm_sauce.plugin.worker.weights import checksum


@pytest.fixture
def model() -> nn.Module:
    """Parameters of several types and odd lengths, one that is a view, a buffer."""
    torch.manual_seed(0)
    made = nn.Module()
    for number, dtype in enumerate(
        (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn)
    ):
        numbers = torch.randn(7, 5).to(dtype)
        made.register_parameter(
            f"p{number}", nn.Parameter(numbers, requires_grad=False)
        )
    whole = torch.randn(33)
    made.register_parameter("part", nn.Parameter(whole[1:], requires_grad=False))
    made.register_parameter("turned", nn.Parameter(torch.randn(4, 6).T))
    made.register_parameter("empty", nn.Parameter(torch.empty(0)))
    made.register_buffer("flags", torch.tensor([True, False, True]))
    made.register_buffer("one", torch.tensor(3.0))
    return made


def test_equal_weights_are_equal(model: nn.Module) -> None:
    before = checksum(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    assert checksum(model) == before


@pytest.mark.parametrize("name", ["p0", "p1", "p2", "p3", "part", "turned", "flags"])
@pytest.mark.parametrize("place", [0, -1])
def test_each_number_tells(model: nn.Module, name: str, place: int) -> None:
    before = checksum(model)
    flat = dict([*model.named_parameters(), *model.named_buffers()])[name].data
    flat[place] = ~flat[place] if flat.dtype is torch.bool else -flat[place].float()
    assert checksum(model) != before


@pytest.mark.parametrize("name", ["p0", "p1", "part", "turned"])
@pytest.mark.parametrize("words", [1, weights._WORDS])
def test_the_same_numbers_elsewhere_tell(
    model: nn.Module, name: str, words: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they change places between parts that are summed at once."""
    monkeypatch.setattr(weights, "_WORDS", words)
    before = checksum(model)
    data = model.get_parameter(name).data
    data.copy_(data.clone().flip(0))
    assert checksum(model) != before


def test_sleeping_weights_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have no memory: a GPU would end the process."""
    worker = SimpleNamespace(
        vllm_config=SimpleNamespace(additional_config={"sauce": {}}),
        model_runner=SimpleNamespace(model=None),
        _sauce_asleep={"weights", "kv_cache"},
    )
    runtime = SimpleNamespace(weights_seen="as before")
    read: list[object] = []

    def noted(model: object) -> str:
        read.append(model)
        return "as before"

    monkeypatch.setattr(weights, "runtime_of", lambda model: runtime)
    monkeypatch.setattr(weights, "checksum", noted)
    weights.look(worker)
    assert not read
    worker._sauce_asleep = {"kv_cache"}
    weights.look(worker)
    assert len(read) == 1
