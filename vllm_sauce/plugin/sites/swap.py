# SPDX-License-Identifier: Apache-2.0
"""Swap the class of one module for a subclass that does something on the way.

As ``torch.nn.utils.parametrize`` does: names, weights and compilation stay. A hook will
not do: modules that vLLM compiles call ``forward`` without running hooks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vllm_sauce.errors import CanaryError
from vllm_sauce.models.architectures import Form
from vllm_sauce.plugin.sites.action import FeaturesAct, StreamAct


def on_input(module: Any, act: FeaturesAct) -> None:
    """Let ``act`` see, and replace, the first tensor that a module is called with."""
    base: Any = type(module)

    class Swapped(base):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            for at, value in enumerate(args):
                if isinstance(value, Tensor):
                    args = (*args[:at], act(value), *args[at + 1 :])
                    return super().forward(*args, **kwargs)
            for name, value in kwargs.items():
                if isinstance(value, Tensor):
                    return super().forward(*args, **{**kwargs, name: act(value)})
            raise CanaryError(f"{base.__name__} was called without a tensor")

    _swap(module, Swapped)


def on_stream(layer: Any, form: Form, act: StreamAct) -> None:
    """Let ``act`` see, and write into, the residual stream that a layer leaves."""
    base: Any = type(layer)

    class Swapped(base):  # type: ignore[misc, valid-type]
        sauce_form = form

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            left = super().forward(*args, **kwargs)
            act(self, *stream_of(left, form))
            return left

    _swap(layer, Swapped)


def stream_of(left: Any, form: Form) -> tuple[Tensor, Tensor | None]:
    """Return hidden_states and residual, whose sum is the stream; None if it is alone.

    Raises: CanaryError if a layer left something else than its class should.
    """
    parts = left if isinstance(left, tuple) else (left,)
    residual = parts[1] if len(parts) > 1 else None
    if (residual is None) != (form == "single"):
        raise CanaryError(
            f"a decoder layer whose stream is listed as {form!r} left "
            f"{sum(part is not None for part in parts)} tensors"
        )
    stream = parts[0]
    if stream.dim() > 2:  # [1, num_tokens, d_model] of transformers' own layers
        stream = stream.view(-1, stream.shape[-1])
    return stream, residual if form == "sum" else None


def _swap(module: Any, swapped: type) -> None:
    swapped.__name__ = swapped.__qualname__ = f"Sauce{type(module).__name__}"
    module.__class__ = swapped
