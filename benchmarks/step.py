# SPDX-License-Identifier: Apache-2.0
"""What batches that change cost an engine's host, beside the model: in microseconds.

``python benchmarks/step.py [--concepts 64] [--latents 32]``

Requests of 16 tokens, each with one of the concepts to forget, begin where others end,
so that most steps hold another batch than the one before, as in
``benchmarks/engine.py``. The plan is made, as on a GPU; the copy to a device is not
timed, for there is none. ``step``: the slots of a step's tokens and the plan. ``core``,
``worker``: what a request's beginning costs in each. ``new mask``: what a mask costs in
a worker that was not resident.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import vllm_sauce
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.config import SauceConfig
from vllm_sauce.plugin import engine_core
from vllm_sauce.plugin.frontend.admission import Admission
from vllm_sauce.plugin.worker.runtime import SauceRuntime
from vllm_sauce.sae import SAEWeights
from vllm_sauce.unlearning.mask import marked
from vllm_sauce.unlearning.slots import SiteTable

TINY = Path(__file__).resolve().parents[1] / "examples" / "tiny" / "model"
SITE, MAX_TOKENS, PROMPT = "decoder.0", 16384, 16
POOL, ROUNDS = 2048, 5


def bundle_of(folder: Path, concepts: int, latents: int) -> Bundle:
    """Return a bundle of random rows for sauce-tiny."""
    rng = random.Random(0)
    catalogue = Catalogue(
        Concept(
            name=f"concept{i}",
            domain="random",
            edits={SITE: SiteEdit.uniform(sorted(rng.sample(range(POOL), latents)))},
        )
        for i in range(concepts)
    )
    fingerprint = fingerprint_model(TINY)
    assert fingerprint.text.hidden_size is not None
    rows = torch.randn(POOL, fingerprint.text.hidden_size)
    sae = SAEWeights(
        W_enc=rows.T.contiguous(),
        W_dec=rows,
        b_enc=torch.zeros(POOL),
        b_dec=torch.zeros(rows.shape[1]),
    )
    Bundle.build(fingerprint, {SITE: sae}, catalogue).save(folder)
    return Bundle.load(folder)


class Host:
    """An engine's core and worker without a model, and seconds of what they do."""

    def __init__(self, admission: Admission, requests: int, latents: int) -> None:
        bundle = admission.bundle
        weights = bundle.sites[SITE].weights
        table = SiteTable(weights, bundle.catalogue, SITE, requests, latents)
        self.admission, self.names = admission, bundle.catalogue.names()
        self.core: Any = SimpleNamespace(
            _sauce_admission=admission,
            _sauce_proven=True,
            _sauce_modalities=frozenset(("image",)),
        )
        self.runtime = SauceRuntime(bundle, {SITE: table}, MAX_TOKENS)
        self.runtime.proven = True
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)

    def timed(self, name: str, call: Callable[..., Any], *args: Any) -> None:
        """Call a function and note its time."""
        start = time.perf_counter()
        call(*args)
        self.seconds[name].append(time.perf_counter() - start)

    def begin(self, req_id: str, number: int) -> None:
        """Let a request through the core to the worker, as a front sends it."""
        from vllm import SamplingParams

        wish = vllm_sauce.forget(self.names[number % len(self.names)])
        mask = self.admission.resolve(wish)
        assert mask is not None
        params = SamplingParams(extra_args=marked(wish, {"mask": mask.to_wire()}))
        request: Any = SimpleNamespace(
            sampling_params=params,
            mm_features=[],
            cache_salt=None,
            prompt_token_ids=[0] * PROMPT,
        )
        self.admission.identify(request, mask)
        self.timed("core", engine_core._check, self.core, request)
        self.timed(
            "worker",
            self.runtime.add_request,
            req_id,
            request.sampling_params,
            request,
        )

    def run(self, requests: int) -> None:
        """Serve three times as many requests as are in flight at a time."""
        rng = random.Random(0)
        waiting = [rng.randint(16, 112) for _ in range(3 * requests)]
        live: dict[str, list[int]] = {}
        while waiting or live:
            while waiting and len(live) < requests:
                number = len(waiting)
                live[str(number)] = [0, PROMPT, waiting.pop()]
                self.begin(str(number), number)
            starts, counts = (
                np.array([one[i] for one in live.values()], np.int32) for i in (0, 1)
            )
            before = self.runtime.decoder[SITE].step
            self.timed("tell", self.runtime.tell_step, list(live), starts, counts)
            if self.runtime.decoder[SITE].step is not before:
                self.seconds["step"].append(self.seconds["tell"].pop())
            for req_id, one in list(live.items()):
                one[:] = one[0] + one[1], 1, one[2] - 1
                if not one[2]:
                    del live[req_id]
                    self.runtime.remove_request(req_id)


def line(admission: Admission, requests: int, latents: int) -> str:
    """Return a table's line for so many requests at a time."""
    host = Host(admission, requests, latents)
    masks = [admission.resolve(vllm_sauce.forget(name)) for name in host.names]
    masks = masks[:requests]
    start = time.perf_counter()
    host.runtime.tables[SITE].assign(masks)
    new = 1e6 * (time.perf_counter() - start) / len(masks)
    host.run(requests)
    host.seconds.clear()
    gc.freeze()  # as an engine does: it would look at all that vLLM has imported
    for _ in range(ROUNDS):
        host.run(requests)
    cells = [f"{new:.0f}"]
    for name in ("step", "tell", "core", "worker"):
        cells.append(f"{1e6 * statistics.median(host.seconds[name]):.0f}")
    return f"| {requests} | {' | '.join(cells)} |"


def main() -> None:
    """Print a line for each number of requests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--concepts", type=int, default=64)
    parser.add_argument("--latents", type=int, default=32)
    options = parser.parse_args()
    os.environ["VLLM_SAUCE_KERNEL"] = "triton"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "bundle"
        bundle = bundle_of(folder, options.concepts, options.latents)
        admission = Admission(SauceConfig(bundle=str(folder)), bundle)
    print("| requests | new mask | step | one that goes on | core | worker |")
    print("|---:|---:|---:|---:|---:|---:|")
    for requests in (16, 64, 256, 1024):
        print(line(admission, requests, options.latents), flush=True)


if __name__ == "__main__":
    main()
