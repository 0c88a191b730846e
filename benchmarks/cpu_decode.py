# SPDX-License-Identifier: Apache-2.0
"""What the edit adds to a decode step on a CPU: 16 requests, 16 masks.

``python benchmarks/cpu_decode.py [--model DIR --bundle DIR] [--rounds 5] [--eager]
[--all-tokens] [--json FILE]``

Without a model it is sauce-tiny with its bundle. Where a bundle has fewer concepts with
a decoder site, masks differ in strength. ``--all-tokens`` edits position 0, too, which
the bundle may spare.

Rounds alternate between three batches of the same requests: no mask, all the same
mask, each its own mask. A step is timed whole, and so is what our own parts take: the
call of the op, PyTorch's dispatcher included, and writing the step's slots. Medians
over all steps of a kind.

With ``--eager`` the op's call is timed inside the step. Nothing can be timed inside a
compiled model: there the same call is made once more after a step, with the step's own
slots and tables, random activations, and a core's cache full of other things.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

TINY = Path(__file__).resolve().parents[1] / "examples" / "tiny"
BATCH = 16
DECODE_STEPS = 120
EVICTED_BYTES = 1 << 22
"""Written before the op is timed by itself: more than a core's L2 cache holds."""
KINDS = ("no mask", "one shared mask", "16 masks")


class Timer:
    """Adds up the seconds spent in a function since the last reading."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def wrap(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return fn(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start

        return timed

    def read(self) -> float:
        """Return the seconds so far and start again."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


class Probe:
    """Calls the op after a step as the compiled model does, and times it."""

    def __init__(self) -> None:
        import torch

        self.sites: list[Any] = []
        """The decoder sites whose slots were written last."""
        self.other = torch.zeros(EVICTED_BYTES, dtype=torch.uint8)
        self.op = torch.ops.vllm_sauce.masked_edit.default

    def watch(self, set_requests: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method that writes slots; remembers whose it was."""

        def watched(site: Any, *args: Any) -> Any:
            if site not in self.sites:
                self.sites.append(site)
            return set_requests(site, *args)

        return watched

    def seconds(self) -> float:
        """Return what a call takes, summed over the sites."""
        import torch

        total = 0.0
        for site in self.sites:
            tables = site.table.op_args()
            d_model = tables["W_enc_rows"].shape[1]
            streams = torch.randn(2, BATCH, d_model)
            # In the op's order, as a compiled graph passes them: by position.
            args = (*streams, site.slot_of_token, *tables.values())
            with torch.inference_mode():
                self.other.add_(1)
                start = time.perf_counter()
                self.op(*args)
                total += time.perf_counter() - start
        return total


def timers(eager: bool) -> tuple[Timer, Timer, Probe]:
    """Put timers around the op, if eager, and the writing of slots."""
    from vllm_sauce.plugin.worker import runtime
    from vllm_sauce.plugin.worker.decoder_site import DecoderSite

    op, slots, probe = Timer(), Timer(), Probe()
    if eager:
        runtime.masked_edit = op.wrap(runtime.masked_edit)
    watched = probe.watch(slots.wrap(DecoderSite.set_requests))
    DecoderSite.set_requests = watched  # type: ignore[method-assign]
    return op, slots, probe


Wish = tuple[str, float]
"""A concept and a strength."""


def wishes_of(bundle: Any) -> list[Wish]:
    """Return wishes of concepts with a decoder site, so that every step is edited."""
    names = [
        name
        for name, concept in bundle.catalogue.items()
        if any(site != "vision" for site in concept.edits)
    ]
    if not names:
        sys.exit("no concept of this bundle has a decoder site: decoding is not edited")
    return [(names[i % len(names)], 1 - i // len(names) / 64) for i in range(BATCH)]


def masks_of(kind: str, wishes: list[Wish]) -> list[Wish | None]:
    """Return what each request of a batch forgets."""
    if kind == KINDS[0]:
        return [None] * BATCH
    return list(wishes[:1] * BATCH if kind == KINDS[1] else wishes)


def editing_all(bundle: Path, folder: Path) -> Path:
    """Write the bundle into a folder, its edits of every kind of token."""
    from vllm_sauce.bundle import Bundle
    from vllm_sauce.concepts import Catalogue
    from vllm_sauce.concepts.site import TOKENS

    given = Bundle.load(bundle)
    concepts = [
        replace(
            concept,
            edits={
                site: edit if site == "vision" else replace(edit, tokens=TOKENS)
                for site, edit in concept.edits.items()
            },
        )
        for concept in given.catalogue.values()
    ]
    saes = {site: sae.weights for site, sae in given.sites.items()}
    Bundle.build(given.fingerprint, saes, Catalogue(concepts)).save(folder / "all")
    return folder / "all"


def run_round(
    llm: Any, masks: list[Wish | None], op: Timer, slots: Timer, probe: Probe | None
) -> list[tuple[float, float, float]]:
    """Decode a batch; returns seconds of (step, op, slots) for each timed step.

    Every second step is timed: the one after a probe finds other caches.
    """
    from vllm import SamplingParams

    import vllm_sauce

    engine = llm.llm_engine
    for i, mask in enumerate(masks):
        extra = None
        if mask is not None:
            extra = dict(vllm_sauce.forget(mask[0], strength=mask[1]))
        params = SamplingParams(
            temperature=0,
            max_tokens=DECODE_STEPS + 8,
            ignore_eos=True,
            extra_args=extra,
            detokenize=False,
        )
        engine.add_request(
            f"{time.perf_counter_ns()}-{i}",
            {"prompt": f"USER: what is in the picture {'?' * (i + 1)} ASSISTANT:"},
            params,
        )
    for _ in range(6):  # prefill, and the first steps after it
        engine.step()
    op.read(), slots.read()
    rows = []
    for _ in range(DECODE_STEPS // 2 - 4):
        start = time.perf_counter()
        engine.step()
        step, slots_s = time.perf_counter() - start, slots.read()
        rows.append((step, probe.seconds() if probe else op.read(), slots_s))
        engine.step()
        op.read(), slots.read()
    while engine.has_unfinished_requests():
        engine.step()
    return rows


def measure(model: Path, bundle: Path, rounds: int, eager: bool) -> dict[str, Any]:
    """Run the rounds; returns medians in microseconds by kind of batch."""
    import torch
    import vllm
    from vllm import LLM

    from vllm_sauce.bundle import Bundle
    from vllm_sauce_kernels.masked_edit import native

    op, slots, every = timers(eager)
    probe = None if eager else every
    llm = LLM(
        model=str(model),
        dtype="float32",
        max_model_len=256,
        max_num_seqs=BATCH,
        enforce_eager=eager,
        disable_log_stats=True,
        additional_config={"sauce": {"bundle": str(bundle)}},
    )
    wishes = wishes_of(Bundle.load(bundle, weights=False))
    found: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS}
    for kind in KINDS:  # warm-up
        run_round(llm, masks_of(kind, wishes), op, slots, probe)
    for _ in range(rounds):
        for kind in KINDS:
            found[kind] += run_round(llm, masks_of(kind, wishes), op, slots, probe)
    medians = {
        kind: [1e6 * statistics.median(column) for column in zip(*rows, strict=True)]
        for kind, rows in found.items()
    }
    return {
        "batch": BATCH,
        "rounds": rounds,
        "model": "eager" if eager else "compiled",
        "steps": {kind: len(rows) for kind, rows in found.items()},
        "median_us": {
            kind: dict(zip(("step", "op", "slots"), values, strict=True))
            for kind, values in medians.items()
        },
        "native": native.how(),
        "torch": torch.__version__,
        "vllm": vllm.__version__,
        "cpu": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    """Print the table; the last line is the same as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=TINY / "model")
    parser.add_argument("--bundle", type=Path, default=TINY / "latents")
    parser.add_argument("--all-tokens", action="store_true", help="the sink, too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.bundle
        if arguments.all_tokens:
            bundle = editing_all(bundle, Path(folder))
        result = measure(arguments.model, bundle, arguments.rounds, arguments.eager)
    print(
        f"decode step of {arguments.model}, batch {BATCH}, float32, "
        f"{result['model']}, {result['threads']} threads, "
        f"torch {result['torch']}, vLLM {result['vllm']}; C++ loop {result['native']}"
    )
    print(f"{'batch':<16} {'step us':>9} {'op us':>7} {'slots us':>9} {'ours %':>7}")
    for kind, us in result["median_us"].items():
        share = 100 * (us["op"] + us["slots"]) / us["step"]
        print(
            f"{kind:<16} {us['step']:>9.0f} {us['op']:>7.1f} {us['slots']:>9.1f} "
            f"{share:>7.2f}"
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    import os

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    main()
