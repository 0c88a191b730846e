# SPDX-License-Identifier: Apache-2.0
"""What a changed batch costs the host before a forward pass, in microseconds a site.

``python benchmarks/step.py``

Every request decodes under a mask of its own, in another order than the step before.
The plan is made, as on a GPU; the copy to a device is not timed, for there is none.
``new mask``: what a mask costs that was not resident.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.plugin.sites.tokens import PromptTokens
from vllm_sauce.plugin.worker.runtime import SauceRuntime
from vllm_sauce.sae import SAEWeights
from vllm_sauce.unlearning.mask import Mask
from vllm_sauce.unlearning.slots import SiteTable

SITE, D_MODEL, MAX_TOKENS, PROMPT = "decoder.0", 64, 8192, 600
POOL, REPEATS = 2048, 200


def runtime_of(masks: int, latents: int) -> tuple[SauceRuntime, list[Mask]]:
    """Return the edit at a site with a mask for each of so many concepts."""
    rng = random.Random(0)
    catalogue = Catalogue(
        Concept(
            name=f"concept{i}",
            domain="random",
            edits={SITE: SiteEdit.uniform(sorted(rng.sample(range(POOL), latents)))},
        )
        for i in range(masks)
    )
    rows = torch.randn(POOL, D_MODEL)
    sae = SAEWeights(
        W_enc=rows.T.contiguous(),
        W_dec=rows,
        b_enc=torch.zeros(POOL),
        b_dec=torch.zeros(D_MODEL),
    )
    table = SiteTable(sae, catalogue, SITE, masks, latents)
    bundle: Any = None
    runtime = SauceRuntime(bundle, {SITE: table}, MAX_TOKENS)
    runtime.proven = True
    return runtime, [Mask.of([(name, 1.0)], "digest") for name in catalogue.names()]


def microseconds(call: Callable[[], None]) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e6 * statistics.median(times)


def line(requests: int, latents: int) -> str:
    """Return a table's line for so many requests, each with its own mask."""
    runtime, masks = runtime_of(requests, latents)
    prompts = [PromptTokens(PROMPT)] * requests
    starts, ones = [PROMPT + 7] * requests, [1] * requests
    start = time.perf_counter()
    runtime.tables[SITE].assign(masks)
    new = 1e6 * (time.perf_counter() - start) / requests

    def changed() -> None:
        masks.append(masks.pop(0))
        runtime.decoder[SITE]._step = None  # of one mask there is but one order
        runtime.begin_step(masks, prompts, starts, ones)

    return f"| {requests} | {latents} | {microseconds(changed):.0f} | {new:.0f} |"


def main() -> None:
    """Print a line for each number of requests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--latents", type=int, default=32)
    options = parser.parse_args()
    os.environ["VLLM_SAUCE_KERNEL"] = "triton"
    print("| requests, masks | latents | changed step us | new mask us |")
    print("|---:|---:|---:|---:|")
    line(1, options.latents)  # warms up
    for requests in (1, 16, 64, 256, 1024):
        print(line(requests, options.latents), flush=True)


if __name__ == "__main__":
    main()
