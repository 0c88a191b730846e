# SPDX-License-Identifier: Apache-2.0
"""Modules whose class was swapped: who sees what, on the way in and out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin.sites import swap


class Layer(nn.Module):
    """Leaves a stream in two parts."""

    def forward(self, positions: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + positions, 2 * x


def test_the_first_tensor_is_replaced_by_position_or_name() -> None:
    module = nn.Linear(3, 2)
    plain = nn.Linear.forward
    swap.on_input(module, lambda features: features + 1)
    x = torch.randn(4, 3)
    assert torch.equal(module(x), plain(module, x + 1))
    assert torch.equal(module(input=x), plain(module, x + 1))
    assert type(module).__name__ == "SauceLinear"
    assert isinstance(module, nn.Linear) and set(module.state_dict()) == {
        "weight",
        "bias",
    }


def test_a_module_called_without_a_tensor_is_an_error() -> None:
    """What cannot be seen cannot be edited."""
    module = nn.Linear(3, 2)
    swap.on_input(module, lambda features: features)
    with pytest.raises(CanaryError, match="without a tensor"):
        module(input=None)


def test_a_layers_stream_may_be_written_into() -> None:
    layer, other = Layer(), Layer()
    seen: list[Any] = []

    def act(module: Any, hidden_states: Tensor, residual: Tensor | None) -> None:
        seen.append(module)
        assert residual is not None
        hidden_states.add_(residual)

    swap.on_stream(layer, "sum", act)
    one, x = torch.ones(2), torch.full((2,), 3.0)
    hidden_states, residual = layer(one, x=x)
    assert hidden_states.tolist() == [10.0, 10.0] and residual.tolist() == [6.0, 6.0]
    assert seen == [layer]
    assert other(one, x)[0].tolist() == [4.0, 4.0], "one layer only"


ONE, TWO = torch.ones(2, 3), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("form", "left", "residual"),
    [
        ("sum", (ONE, TWO), TWO),
        ("sum", (ONE, TWO, TWO), TWO),
        ("first", (ONE, TWO), None),
        ("single", ONE, None),
        ("single", (ONE, None), None),
    ],
)
def test_the_stream_is_where_the_table_says(
    form: Any, left: Any, residual: Any
) -> None:
    stream, beside = swap.stream_of(left, form)
    assert stream is ONE and beside is residual


def test_a_layer_of_transformers_has_one_batch() -> None:
    """What is written into its rows must be what it leaves."""
    left = torch.zeros(1, 4, 3)
    stream, _ = swap.stream_of(left, "single")
    assert stream.shape == (4, 3)
    stream.add_(1)
    assert bool((left == 1).all())
    with pytest.raises(RuntimeError, match="view"):
        swap.stream_of(torch.zeros(4, 2, 3).transpose(0, 1), "single")


@pytest.mark.parametrize(
    ("form", "left"),
    [("sum", ONE), ("sum", (ONE, None)), ("first", (ONE,)), ("single", (ONE, TWO))],
)
def test_a_layer_that_leaves_something_else_is_an_error(form: Any, left: Any) -> None:
    with pytest.raises(CanaryError, match=f"listed as '{form}' left [12] tensors"):
        swap.stream_of(left, form)
