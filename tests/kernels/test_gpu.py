# SPDX-License-Identifier: Apache-2.0
"""The op on a real GPU: ``pytest -m gpu tests/kernels``.

The interpreter runs a program at a time and rounds otherwise; races between programs,
alignment and graph capture show only here.
"""

from __future__ import annotations

import pytest
import torch

from tests.kernels.inputs import Args, expected, make_args, normals, small_integers
from tests.kernels.plans import plan_of
from vllm_sauce_kernels.masked_edit import masked_edit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
PLANNED = (False, True)
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = [
    (1, 4096, 64, 32, 1),
    (7, 130, 23, 5, 3),
    (256, 4096, 512, 32, 256),
    (1500, 1024, 300, 128, 3),
    (5, 1, 4, 17, 2),
]


def on_gpu(args: Args, planned: bool) -> Args:
    """Return the arguments on the GPU, with the step's plan or without."""
    plan = plan_of(args) if planned else None
    moved = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in args.items()}
    return {**moved, "plan": None if plan is None else plan.cuda()}


def cast(args: Args, stream: torch.dtype, pool: torch.dtype) -> Args:
    for name in ("hidden_states", "residual"):
        args[name] = args[name].to(stream)
    for name in ("W_enc_rows", "W_dec_rows"):
        args[name] = args[name].to(pool)
    return args


@pytest.mark.parametrize("planned", PLANNED)
@pytest.mark.parametrize("shape", SHAPES)
def test_small_integers_are_exact(
    shape: tuple[int, int, int, int, int], planned: bool
) -> None:
    args = make_args(shape, small_integers())
    want, got = expected(args), on_gpu(args, planned)
    masked_edit(**got)
    assert torch.equal(got["hidden_states"].cpu(), want["hidden_states"])
    assert torch.equal(got["edited_tokens"].cpu(), want["edited_tokens"])


@pytest.mark.parametrize("planned", PLANNED)
@pytest.mark.parametrize(
    "kind", [{}, {"normalize": 1}, {"normalize": 2}, {"topk": 9}], ids=str
)
@pytest.mark.parametrize(
    ("stream", "pool"),
    [(BF16, BF16), (FP16, FP16), (FP32, FP32), (BF16, torch.float8_e4m3fn)],
    ids=str,
)
def test_every_dtype_and_kind(
    stream: torch.dtype, pool: torch.dtype, kind: dict[str, int], planned: bool
) -> None:
    """To a unit in the last place of the stream; edited rows differ from before."""
    if pool == torch.float8_e4m3fn and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no e4m3fn")
    args = cast(make_args((70, 300, 60, 20, 5), normals(1)), stream, pool)
    args |= kind
    want, got = expected(args), on_gpu(args, planned)
    masked_edit(**got)
    ulp = max(torch.finfo(stream).eps, 1e-5)
    scale = float(want["hidden_states"].abs().max())
    close = (got["hidden_states"].cpu() - want["hidden_states"]).abs()
    # A gate that rounding crosses may flip a latent of a token or two.
    wrong_rows = (close > 2 * ulp * scale).any(1)
    assert int(wrong_rows.sum()) <= 2
    assert torch.equal(got["edited_tokens"].cpu(), want["edited_tokens"])
    assert (want["hidden_states"] != args["hidden_states"]).any()


@pytest.mark.parametrize("planned", PLANNED)
def test_a_captured_graph_sees_new_masks_by_the_buffers_alone(
    planned: bool,
) -> None:
    """Capture with no token masked; replay with masks, then with none."""
    args = make_args((40, 512, 60, 20, 5), small_integers(2))
    slots, plan = args["slot_of_token"].clone(), None
    if planned:
        plan = plan_of(args).cuda()
    want = expected(args)["hidden_states"]
    idle = on_gpu(args, False)
    idle["slot_of_token"].fill_(-1)
    idle["plan"] = None if plan is None else torch.zeros_like(plan)
    before = idle["hidden_states"].clone()
    masked_edit(**idle)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masked_edit(**idle)
    graph.replay()
    assert torch.equal(idle["hidden_states"], before)
    idle["slot_of_token"].copy_(slots)
    if plan is not None:
        idle["plan"].copy_(plan)
    graph.replay()
    assert torch.equal(idle["hidden_states"].cpu(), want)
    idle["slot_of_token"].fill_(-1)
    if plan is not None:
        idle["plan"].zero_()
    after = idle["hidden_states"].clone()
    graph.replay()
    assert torch.equal(idle["hidden_states"], after)


def test_compiled_code_keeps_and_orders_the_edit() -> None:
    args = on_gpu(make_args((5, 64, 8, 4, 2), small_integers(9)), True)
    rest = {k: v for k, v in args.items() if k != "hidden_states"}

    def model(hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hidden_states = hidden_states + 0.0
        first = hidden_states * 2.0
        masked_edit(hidden_states, **rest)
        return first, hidden_states * 2.0

    first, second = torch.compile(model, fullgraph=True)(args["hidden_states"])
    assert torch.equal(first, args["hidden_states"] * 2.0)
    assert not torch.equal(first, second)
