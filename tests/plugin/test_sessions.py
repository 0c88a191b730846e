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

pytestmark = pytest.mark.skipif(
    RUNNER == "v2", reason="V2 on CPU needs a stand-in inside the engine's process"
)

TURN = "is there a cat in the picture ? "


async def chunks(*asks: Ask | None) -> AsyncIterator[Any]:
    """Yield prompts of a session; a question of None keeps the session's parameters."""
    from vllm.engine.protocol import StreamingInput

    for ask in asks:
        params = None if ask is None else ask.params()
        text = LONG + TURN if ask is None else ask.text
        yield StreamingInput(prompt={"prompt": text}, sampling_params=params)


async def session(engine: Any, name: str, first: Ask, *asks: Ask | None) -> list[Any]:
    """Run a session; returns the tokens and log-probabilities of its last output."""
    last: Any = None
    async for output in engine.generate(chunks(*asks), first.params(), name):
        last = output
    return [list(last.outputs[0].token_ids), last.num_cached_tokens]


def test_a_session_keeps_its_mask(model_dir: Path, bundle_dir: Path) -> None:
    """Chunks of the session's mask pass; another's are refused, in either direction."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    plain, masked = Ask(None, LONG, max_tokens=2), Ask(None, LONG, ("read",))
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
            one = await session(engine, "a", masked, masked, None, masked)
            again = await session(engine, "b", masked, None, masked, None)
            assert one[0] == again[0] and again[1] > 0
            other = await session(engine, "c", plain, plain, None, plain)
            assert other[0] != one[0]
            for i, (first, chunk) in enumerate(
                [(masked, plain), (plain, masked), (masked, stronger)]
            ):
                with pytest.raises(InvalidRequestError, match="same concepts"):
                    await session(engine, f"bad{i}", first, first, chunk)
            assert await session(engine, "d", plain, plain, None, plain) != one
        finally:
            engine.shutdown()

    asyncio.run(everything())
