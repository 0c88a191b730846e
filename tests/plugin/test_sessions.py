# SPDX-License-Identifier: Apache-2.0
"""A streaming-input session: many prompts, one request, one mask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.conftest import RUNNER
from tests.plugin.support import LONG, Ask
from vllm_sauce.errors import InvalidRequestError

pytestmark = [
    pytest.mark.feature("sessions of many prompts"),
    pytest.mark.engine,
    pytest.mark.skipif(
        RUNNER == "v2", reason="V2 on CPU needs a stand-in inside the engine's process"
    ),
]

TURN = "is there a cat in the picture ? "


async def chunks(*asks: Ask | None) -> AsyncIterator[Any]:
    """Yield prompts of a session; a question of None keeps the session's parameters."""
    from vllm.engine.protocol import StreamingInput

    for ask in asks:
        params = None if ask is None else ask.params()
        text = LONG + TURN if ask is None else ask.text
        yield StreamingInput(prompt={"prompt": text}, sampling_params=params)


async def session(
    engine: Any, name: str, first: Ask, *asks: Ask | None
) -> tuple[list[float], int]:
    """Run a session; returns the log-probabilities of all it said, and what was hit."""
    said: list[float] = []
    cached = 0
    async for output in engine.generate(chunks(*asks), first.params(), name):
        steps = output.outputs[0].logprobs or ()
        said = [round(top.logprob, 2) for step in steps for top in step.values()]
        cached = max(cached, output.num_cached_tokens or 0)
    return said, cached


async def answer(engine: Any, name: str, ask: Ask, tokens: int) -> Any:
    """Return the last of what one request is answered."""
    params = ask.params()
    params.max_tokens, params.ignore_eos = tokens, True
    async for output in engine.generate({"prompt": ask.text}, params, name):
        last = output.outputs[0]
    return last


async def sleeps_at_work(engine: Any, plain: Ask, masked: Ask) -> None:
    """Nothing masked is let in on a proof that sleep takes back, or ends the engine."""
    before = (await answer(engine, "f", masked, 8)).token_ids
    working = asyncio.create_task(answer(engine, "g", plain, 400))
    await asyncio.sleep(0.2)
    assert not working.done()
    await engine.sleep(level=2, mode="wait")
    assert len((await working).token_ids) == 400
    refused = await answer(engine, "h", masked, 8)
    assert (refused.finish_reason, list(refused.token_ids)) == ("error", [])
    await engine.wake_up()
    await engine.collective_rpc("reload_weights")
    assert (await answer(engine, "i", masked, 8)).token_ids == before
    # What was kept until it wakes is ended, alone: the weights are not back.
    kept = asyncio.create_task(answer(engine, "j", masked, 400))
    await asyncio.sleep(0.2)
    await engine.sleep(level=2, mode="keep")
    assert not kept.done()
    await engine.wake_up()
    assert (await kept).finish_reason == "abort"
    assert len((await answer(engine, "k", plain, 8)).token_ids) == 8


def test_a_session_keeps_its_mask(model_dir: Path, bundle_dir: Path) -> None:
    """Chunks of the session's mask pass; another's are refused, in either direction."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    plain, masked = Ask(None, LONG), Ask(None, LONG, ("read",))
    stronger = Ask(None, LONG, ("read",), 2.0)

    async def everything() -> None:
        engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=str(model_dir),
                dtype="float32",
                max_model_len=1024,
                enforce_eager=True,
                block_size=32,
                max_num_seqs=4,
                additional_config={"sauce": {"bundle": str(bundle_dir)}},
            )
        )
        try:
            one, _ = await session(engine, "a", masked, masked, None, masked)
            again, cached = await session(engine, "b", masked, masked, None, masked)
            assert one == again and one and cached >= 32
            other, cached = await session(engine, "c", plain, plain, None, plain)
            assert other != one and cached == 0
            for i, (first, chunk) in enumerate(
                [(masked, plain), (plain, masked), (masked, stronger)]
            ):
                with pytest.raises(InvalidRequestError, match="same concepts"):
                    await session(engine, f"bad{i}", first, first, chunk)
            # What the refused ones left in the caches is nobody else's.
            assert (await session(engine, "d", plain, plain, None, plain))[0] == other
            assert (await session(engine, "e", masked, masked, None, masked))[0] == one
            await sleeps_at_work(engine, plain, masked)
        finally:
            engine.shutdown()

    asyncio.run(everything())
