# SPDX-License-Identifier: Apache-2.0
"""Proof that a decoder layer leaves its stream where the table of architectures says.

What comes after a layer tells, whatever the model: if it adds ``residual`` to
``hidden_states``, nothing changes when a vector is moved from the one to the other; if
it takes ``hidden_states`` alone, nothing when ``residual`` is changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vllm_sauce.errors import CanaryError
from vllm_sauce.models.architectures import Form
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.sites.modules import class_of, form_of
from vllm_sauce.plugin.sites.swap import stream_of

_TOLERANCE = 0.1
"""Of what the vector changes where it counts. Measured on random models: up to 2e-6 in
float32 where the form is right, 0.05 and more of the logits where it is wrong; bfloat16
rounds the vector itself by 1/256."""

_SAME = 0.01
"""Of a stream, on two ranks that have it whole; measured on random models: 0."""

_LENGTH = 2.0

_SHIFTS: dict[Form, tuple[int, int]] = {"sum": (1, -1), "first": (0, 1)}
"""What leaves the stream as it is, of hidden_states and of residual."""


def prove_form(runner: Any, site: str, layer: Any) -> None:
    """Compare the model's outputs when a layer leaves its stream in another way.

    Raises: CanaryError
    """
    form = form_of(layer)
    tokens, _ = compat.tokens_without_graph(runner.vllm_config)
    shift, still = _SHIFTS.get(form), 0.0
    with compat.dummy_embeddings(runner, tokens):
        plain = _output(runner, layer, (0, 0))
        moved = _distance(_output(runner, layer, (1, 0)), plain)
        if shift is not None:
            still = _distance(_output(runner, layer, shift), plain)
    with compat.together():
        if not moved > 0 or not still <= _TOLERANCE * moved:
            raise CanaryError(
                f"site {site}: layers of {class_of(layer)} are listed as {form!r}, but "
                "the model does not take their output so (a vector in the stream moves "
                f"its output by {moved:.2g}, one that should not by {still:.2g}); what "
                "would be edited is not the residual stream"
            )


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).square().mean().sqrt())


def _vector(stream: Tensor) -> Tensor:
    """Return one direction for all tokens, of a length that outweighs each's stream.

    Shapes: stream [num_tokens, d_model], same out
    """
    rng = torch.Generator().manual_seed(0)
    direction = torch.randn(stream.shape[-1], generator=rng).to(stream.device)
    length = stream.float().square().mean(-1, keepdim=True).sqrt()
    return (_LENGTH * length * direction).to(stream.dtype)


def _output(runner: Any, layer: Any, shift: tuple[int, int]) -> Tensor:
    streams: list[Tensor] = []

    def shifted(*args: Any, **kwargs: Any) -> Any:
        left = type(layer).forward(layer, *args, **kwargs)
        hidden_states, residual = stream_of(left, form_of(layer))
        stream = hidden_states if residual is None else hidden_states + residual
        streams.append(stream)
        parts = list(left) if isinstance(left, tuple) else [left]
        for i, share in enumerate(shift):
            if share:
                parts[i] = parts[i] + share * _vector(stream).view_as(parts[i])
        return tuple(parts) if isinstance(left, tuple) else parts[0]

    layer.forward = shifted
    try:
        output: Tensor = compat.dummy_output(runner)
    finally:
        del layer.forward
    with compat.together():
        if not streams:
            raise CanaryError(
                f"a layer of {class_of(layer)} was not called when the model ran "
                "without compilation and graphs; nothing can be proven of it"
            )
    _check_whole(layer, streams[0].float())
    return output


def _check_whole(layer: Any, stream: Tensor) -> None:
    """Check that each tensor-parallel rank has the whole stream, not a part of its sum.

    Raises: CanaryError
    """
    first = compat.of_all_ranks(stream.cpu())[0].to(stream.device)
    with compat.together():
        if not (stream - first).norm() <= _SAME * first.norm():
            raise CanaryError(
                f"layers of {class_of(layer)} leave each tensor-parallel rank a part "
                "of the residual stream, and an edit must see it whole; serve with "
                "--tensor-parallel-size 1"
            )
