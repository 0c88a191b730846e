# SPDX-License-Identifier: Apache-2.0
"""What the plugin costs a whole engine: plain, plugin idle, every request masked.

``python benchmarks/engine.py [--model DIR] [--dummy] [--batches 1 16] [--json FILE]``

Two engines side by side, one without the plugin, answer the same prompts in turns; only
ratios of runs that follow each other are compared. ``steady`` batches begin and end
together. In ``changing`` ones lengths are spread and a request begins where one ends,
so that most steps hold another batch than the one before: as in serving. Each request
forgets one of 64 concepts at the decoder's middle layer: of a row each, or of 32
latents; the bundle is random, and half of what is masked fires.
``--pictures`` gives each request a picture of its own. ``--dummy`` gives random weights
to a folder that has a config and a processor but none.
"""

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

TINY = Path(__file__).resolve().parents[1] / "examples" / "tiny"
KINDS = ("plain", "idle", "rows", "latents")
BATCHES = ("changing", "steady")
CONCEPTS, LATENTS = 64, 32
RATES = {"decode": "decode_tokens_per_s", "all": "tokens_per_s"}
TEXT = "USER: What is there to see, and what does it look like? ASSISTANT:"
PROMPT_TOKENS = 16


def write_bundle(model: Path, folder: Path) -> None:
    """Write a bundle of random rows that no concept shares."""
    import torch

    from vllm_sauce.bundle import Bundle, fingerprint_model
    from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
    from vllm_sauce.sae import SAEWeights

    fingerprint = fingerprint_model(model)
    d_model, layers = fingerprint.text.hidden_size, fingerprint.text.num_hidden_layers
    assert d_model is not None and layers is not None
    site, d_sae = f"decoder.{layers // 2}", CONCEPTS * LATENTS
    rows = torch.randn(d_sae, d_model)
    rows = rows / rows.norm(dim=1, keepdim=True)
    sae = SAEWeights(
        W_enc=rows.T.contiguous(),
        W_dec=rows,
        b_enc=torch.zeros(d_sae),
        b_dec=torch.zeros(d_model),
    )
    concepts = [
        Concept(
            name=f"{kind}{i}",
            domain=kind,
            edits={
                site: SiteEdit.uniform(
                    range(i * LATENTS, i * LATENTS + latents), gamma=0.9
                )
            },
        )
        for kind, latents in (("rows", 1), ("latents", LATENTS))
        for i in range(CONCEPTS)
    ]
    Bundle.build(fingerprint, {site: sae}, Catalogue(concepts)).save(folder)


def start(arguments: argparse.Namespace, bundle: Path | None) -> Any:
    """Start an engine, in a process of its own; without a bundle it has no plugin."""
    from vllm import LLM
    from vllm.platforms import current_platform

    import vllm_sauce.plugin
    from vllm_sauce.plugin.startup import weights

    options: dict[str, Any] = {"load_format": "dummy"} if arguments.dummy else {}
    weights.random_allowed = arguments.dummy
    most = max(arguments.batches)
    if not current_platform.is_cpu():
        # Fewer graphs than by default, in both engines, for a shorter start, but as
        # large ones: a step that has more tokens than requests is not to go without.
        sizes = {2**i for i in range(6)} | set(range(32, min(2 * most, 512) + 1, 32))
        options["compilation_config"] = {"cudagraph_capture_sizes": sorted(sizes)}
    if bundle is None:
        os.environ["VLLM_PLUGINS"] = "none"
    else:
        os.environ.pop("VLLM_PLUGINS", None)
        # vLLM loads plugins once a process, and did so for the plain engine.
        vllm_sauce.plugin.register()
        options["additional_config"] = {"sauce": {"bundle": str(bundle)}}
    return LLM(
        str(arguments.model),
        dtype=arguments.dtype,
        max_model_len=arguments.max_model_len,
        max_num_seqs=most,
        gpu_memory_utilization=0.42,
        enable_prefix_caching=False,
        seed=0,
        **options,
    )


@dataclass(frozen=True)
class Setting:
    """A line of the table."""

    batch: str
    requests: int
    """In flight at a time."""

    def lengths(self, output_len: int) -> list[int]:
        """Return each request's number of output tokens."""
        if self.batch == "steady":
            return [output_len] * self.requests
        rng = random.Random(0)
        return [
            rng.randint(output_len // 4, 7 * output_len // 4)
            for _ in range(3 * self.requests)
        ]


@dataclass(frozen=True)
class Run:
    """One kind's answers to all prompts of a setting."""

    tokens_per_s: float
    decode_tokens_per_s: float
    """From the first answer's first token on."""


def prompts_of(llm: Any, count: int, pictures: bool) -> Iterator[Any]:
    """Yield prompts that differ from each other."""
    words = llm.get_tokenizer().encode(TEXT, add_special_tokens=False)
    rng = random.Random(0)
    for i in range(count):
        if not pictures:
            yield {"prompt_token_ids": rng.choices(words, k=PROMPT_TOKENS)}
            continue
        from PIL import Image

        picture = Image.new("RGB", (336, 336), (i % 256, 40, i // 256))
        text = "USER: <image>\nDescribe the picture. ASSISTANT:"
        yield {"prompt": text, "multi_modal_data": {"image": picture}}


class Step(NamedTuple):
    """A step, as the client sees it."""

    begins: bool
    """Whether requests were added before it."""

    answers: bool
    """Whether it brought tokens."""

    seconds: float
    """With what the client does before it."""


def steps_of(
    llm: Any, kind: str, setting: Setting, arguments: argparse.Namespace
) -> list[Step]:
    """Answer all prompts, so many at a time; return the steps that it took."""
    from vllm import SamplingParams

    import vllm_sauce

    lengths = setting.lengths(arguments.output_len)
    requests = [
        (
            str(i),
            prompt,
            SamplingParams(
                max_tokens=length,
                ignore_eos=True,
                temperature=0.0,
                detokenize=False,
                extra_args=vllm_sauce.forget(f"{kind}{i % CONCEPTS}")
                if kind in ("rows", "latents")
                else None,
            ),
        )
        for i, (length, prompt) in enumerate(
            zip(lengths, prompts_of(llm, len(lengths), arguments.pictures), strict=True)
        )
    ]
    engine, running, steps = llm.llm_engine, 0, []
    last = time.perf_counter()
    while requests or running:
        begins = bool(requests) and running < setting.requests
        while requests and running < setting.requests:
            engine.add_request(*requests.pop(0))
            running += 1
        outputs = engine.step()
        running -= sum(output.finished for output in outputs)
        now = time.perf_counter()
        steps.append(Step(begins, bool(outputs), now - last))
        last = now
    return steps


def ask(llm: Any, kind: str, setting: Setting, arguments: argparse.Namespace) -> Run:
    """Answer all prompts, so many at a time."""
    steps = steps_of(llm, kind, setting, arguments)
    tokens = sum(setting.lengths(arguments.output_len))
    first = next(number for number, step in enumerate(steps) if step.answers)
    seconds = [step.seconds for step in steps]
    return Run(
        tokens / sum(seconds), (tokens - setting.requests) / sum(seconds[first + 1 :])
    )


def measure(
    llms: dict[str, Any], setting: Setting, arguments: argparse.Namespace
) -> Iterator[dict[str, Run]]:
    """Yield rounds of all kinds, in turns; the first, which warms up, is left out."""
    for index in range(arguments.repeats + 1):
        turn = index % len(KINDS)
        found = {}
        for kind in KINDS[turn:] + KINDS[:turn]:
            found[kind] = run = ask(llms[kind], kind, setting, arguments)
            progress = (
                f"{setting} round {index} {kind}: {run.tokens_per_s:.0f} tokens/s"
            )
            print(progress, file=sys.stderr, flush=True)
        if index:
            yield found


def line_of(setting: Setting, rounds: list[dict[str, Run]]) -> str:
    """Return a table's line: plain's rate, and each kind's ratios to plain."""
    plain = statistics.median(one["plain"].decode_tokens_per_s for one in rounds)
    cells = [setting.batch, str(setting.requests), f"{plain:.0f}"]
    for kind in KINDS[1:]:
        for rate in RATES.values():
            ratios = sorted(
                getattr(one[kind], rate) / getattr(one["plain"], rate) for one in rounds
            )
            middle = statistics.median(ratios)
            cells.append(f"{middle:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")
    return f"| {' | '.join(cells)} |"


def title_of(arguments: argparse.Namespace) -> str:
    """Return what was measured, where, with what."""
    import torch
    import vllm

    device = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    what = "with a picture each" if arguments.pictures else "of text"
    return (
        f"{Path(arguments.model).name}, requests {what}, {arguments.output_len} output "
        f"tokens (changing: a quarter to 7 quarters), {arguments.dtype}; "
        f"{arguments.repeats} rounds; {device}, "
        f"{os.cpu_count()} cores; torch {torch.__version__}, vLLM {vllm.__version__}"
    )


def main() -> None:
    """Measure all settings and print a line of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=TINY / "model")
    parser.add_argument("--dummy", action="store_true", help="random weights")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    # On CPUs vLLM would else take a share of all memory for its cache.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # A fork of a process whose threads have computed waits for them forever.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        write_bundle(arguments.model, bundle)
        plain = start(arguments, None)
        sauce = start(arguments, bundle)
    llms = {kind: sauce for kind in KINDS} | {"plain": plain}
    print(
        f"{title_of(arguments)}\n\n"
        "| batch | in flight | plain, decode tokens/s | "
        + " | ".join(f"{kind}, {what}" for kind in KINDS[1:] for what in RATES)
        + " |\n|---|"
        + "---:|" * (2 + len(RATES) * len(KINDS[1:]))
    )
    found: list[dict[str, Any]] = []
    many_first = sorted(arguments.batches, reverse=True)
    for setting in (Setting(b, n) for n in many_first for b in BATCHES):
        rounds: list[dict[str, Run]] = []
        found.append({**asdict(setting), "rounds": []})
        for one in measure(llms, setting, arguments):
            rounds.append(one)
            found[-1]["rounds"].append({k: asdict(run) for k, run in one.items()})
            # A run may be cut short: what is measured is not lost.
            if arguments.json is not None:
                result = {"title": title_of(arguments), "settings": found}
                arguments.json.write_text(json.dumps(result) + "\n")
        print(line_of(setting, rounds), flush=True)
    for llm in (plain, sauce):
        llm.llm_engine.engine_core.shutdown()


if __name__ == "__main__":
    main()
