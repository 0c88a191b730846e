# SPDX-License-Identifier: Apache-2.0
"""Asks engines to forget whose processes have lost the plugin; prints what happens.

``python -m tests.plugin.deaf_engine MODEL BUNDLE``
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import vllm_sauce

if __name__ != "__main__":
    # Imported anew by what is spawned: by an engine's core and its workers.
    os.environ["VLLM_PLUGINS"] = "none"

PROMPT = "what is this ?"


def params() -> Any:
    """Return those of a masked request."""
    from vllm import SamplingParams

    return SamplingParams(max_tokens=2, extra_args=vllm_sauce.forget("dog"))


async def offline(options: dict[str, Any]) -> Any:
    """Ask an ``LLM``."""
    from vllm import LLM

    return LLM(**options).generate(PROMPT, params())


async def online(options: dict[str, Any]) -> Any:
    """Ask an ``AsyncLLM`` that no server has started."""
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
    try:
        return [answer async for answer in llm.generate(PROMPT, params(), "1")]
    finally:
        llm.shutdown()


async def told(ask: Callable[[dict[str, Any]], Awaitable[Any]], **options: Any) -> str:
    """Return what asking raises, to the last cause, or that it was answered."""
    try:
        await ask(options)
    except Exception as error:
        last: BaseException = error
        while last.__cause__ is not None and type(last).__name__ != "ConfigError":
            last = last.__cause__
        return f"{type(last).__name__}: {last}".replace("\n", " ")
    return "answered"


def main(model: str, bundle: str) -> None:
    """Print a line of each."""
    os.environ |= {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    }
    for ask in (offline, online):
        done = told(
            ask,
            model=model,
            max_model_len=128,
            max_num_seqs=4,
            enforce_eager=True,
            additional_config={"sauce": {"bundle": bundle}},
        )
        print(f"TOLD {ask.__name__} {asyncio.run(done)}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
