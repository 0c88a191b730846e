# SPDX-License-Identifier: Apache-2.0
"""What of a run is the plugin's own time, hook by hook: whole runs differ by more.

``python benchmarks/share.py [--kind idle|mandatory] [--eager] [--rounds N]``

One engine in this process answers random prompts. Around every hook the time of vLLM's
own function is taken off; what is left is ours, the clock's among it (about a
microsecond a hook). The op itself is timed with ``--eager`` alone: it is inside of what
is compiled. Load that others put on the machine lengthens both, so shares hold where
seconds do not.
"""

import argparse
import os
import random
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

TINY = Path(__file__).resolve().parents[1] / "examples" / "tiny"
MANDATORY = ["dog", "red"]
WORDS = 100
"""Of sauce-tiny's vocabulary."""


class Clock:
    """Seconds and calls of each of our functions, since the last ``clear``."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()

    def clear(self) -> None:
        """Begin anew."""
        self.seconds.clear()
        self.calls.clear()

    def around(self, name: str, around: Callable[..., Any]) -> Callable[..., Any]:
        """Time a hook without the function that it is around."""

        def timed(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            within = 0.0

            def timed_original(*args: Any, **kwargs: Any) -> Any:
                nonlocal within
                begun = time.perf_counter()
                try:
                    return original(*args, **kwargs)
                finally:
                    within += time.perf_counter() - begun

            begun = time.perf_counter()
            try:
                return around(timed_original, *args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - begun - within
                self.calls[name] += 1

        return timed

    def install(self, *, eager: bool) -> None:
        """Time every hook that is placed from now on, and the op where it is eager."""
        from vllm_sauce.plugin import compat
        from vllm_sauce.plugin.worker import runtime

        wrap, edit_stream = compat.version.wrap, runtime.edit_stream

        def timed_wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
            wrap(owner, name, self.around(name, around))

        for module in (compat, compat.version, compat.worker):
            module.wrap = timed_wrap  # type: ignore[attr-defined]
        if not eager:
            return
        op = self.around("the op", lambda _, *args: edit_stream(*args))
        runtime.edit_stream = lambda *args: op(None, *args)


def start(arguments: argparse.Namespace) -> Any:
    """Start the engine, as a server of sauce-tiny would be."""
    from vllm import LLM

    forget = MANDATORY if arguments.kind == "mandatory" else []
    return LLM(
        model=str(TINY / "model"),
        dtype="float32",
        max_model_len=512,
        max_num_seqs=32,
        enforce_eager=arguments.eager,
        additional_config={
            "sauce": {"bundle": str(TINY / "latents"), "forget": forget}
        },
    )


def main() -> None:
    """Print each round's share, and the hooks' medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=("idle", "mandatory"), default="idle")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--tokens", type=int, default=96)
    arguments = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    clock = Clock()
    clock.install(eager=arguments.eager)
    from vllm import SamplingParams

    llm, rng = start(arguments), random.Random(0)
    prompts: Any = [
        {"prompt_token_ids": [10 + rng.randrange(WORDS) for _ in range(32)]}
        for _ in range(arguments.prompts)
    ]
    params = SamplingParams(temperature=0, max_tokens=arguments.tokens, ignore_eos=True)
    shares: dict[str, list[float]] = {}
    for number in range(arguments.rounds + 1):
        llm.reset_prefix_cache()
        clock.clear()
        begun = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - begun
        if number == 0:
            continue  # to warm up
        ours = sum(clock.seconds.values())
        print(f"round {number}: {seconds:.2f} s, ours {ours / seconds:.2%}", flush=True)
        for name, spent in [*clock.seconds.items(), ("all", ours)]:
            shares.setdefault(name, []).append(spent / seconds)
    print("| ours | calls a round | share of a run, median | rounds |")
    print("|---|---:|---:|---|")
    for name, found in sorted(shares.items(), key=lambda one: -max(one[1])):
        rounds = " ".join(f"{share:.2%}" for share in found)
        middle = statistics.median(found)
        print(f"| {name} | {clock.calls[name] or ''} | {middle:.2%} | {rounds} |")


if __name__ == "__main__":
    main()
