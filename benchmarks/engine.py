# SPDX-License-Identifier: Apache-2.0
"""What the plugin costs a whole engine: plain, plugin idle, every request masked.

``python benchmarks/engine.py [--model DIR] [--dummy] [--rounds 3] [--json FILE]``

A round is a process without the plugin and one with it, in turns; in the latter idle
and masked batches alternate. Only ratios within a round are compared; those to plain
lie across processes, so they carry a machine's noise from process to process. The masks
come from a random bundle written for the model: 64 concepts of 32 latents at the
decoder's middle layer, each request with one of them. Outputs have a fixed length.
``--dummy`` gives random weights to a folder that has a config and a processor but none.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.progress import track

TINY = Path(__file__).resolve().parents[1] / "examples" / "tiny"
KINDS = ("plain", "idle", "masked")
ENGINES = {"plain": ("plain",), "sauce": ("idle", "masked")}
CONCEPTS, LATENTS = 64, 32


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
            name=f"concept{i}",
            domain="random",
            edits={
                site: SiteEdit.uniform(range(i * LATENTS, (i + 1) * LATENTS), gamma=0.9)
            },
        )
        for i in range(CONCEPTS)
    ]
    Bundle.build(fingerprint, {site: sae}, Catalogue(concepts)).save(folder)


def worker(arguments: argparse.Namespace) -> None:
    """Run an engine's kinds in turns and print their output tokens a second."""
    from PIL import Image
    from vllm import LLM

    options: dict[str, Any] = {"load_format": "dummy"} if arguments.dummy else {}
    if arguments.worker == "sauce":
        options["additional_config"] = {"sauce": {"bundle": str(arguments.bundle)}}
    llm = LLM(
        str(arguments.model),
        dtype=arguments.dtype,
        max_model_len=arguments.max_model_len,
        max_num_seqs=arguments.requests,
        enable_prefix_caching=False,
        seed=0,
        **options,
    )
    picture = Image.effect_noise((336, 336), 60).convert("RGB")
    prompt = "USER: <image>\nDescribe the picture. ASSISTANT:"
    prompts: Any = [
        {"prompt": prompt, "multi_modal_data": {"image": picture}}
    ] * arguments.requests
    rates: dict[str, list[float]] = {kind: [] for kind in ENGINES[arguments.worker]}
    for _ in range(arguments.repeats + 1):
        for kind in rates:
            sampling = sampling_params(kind, arguments)
            start = time.perf_counter()
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
            tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
            rates[kind].append(tokens / (time.perf_counter() - start))
    # The first of each warms up.
    medians = {kind: statistics.median(many[1:]) for kind, many in rates.items()}
    print("RATES", json.dumps(medians), flush=True)


def sampling_params(kind: str, arguments: argparse.Namespace) -> list[Any]:
    """Return each request's parameters; masked ones forget a concept each."""
    from vllm import SamplingParams

    import vllm_sauce

    return [
        SamplingParams(
            max_tokens=arguments.output_len,
            ignore_eos=True,
            temperature=0.0,
            extra_args=vllm_sauce.forget(f"concept{i % CONCEPTS}")
            if kind == "masked"
            else None,
        )
        for i in range(arguments.requests)
    ]


def measure(
    engine: str, arguments: argparse.Namespace, bundle: Path
) -> dict[str, float]:
    """Return the median output tokens a second of one process, by kind."""
    command = [sys.executable, __file__, "--worker", engine, "--bundle", str(bundle)]
    for name in ("model", "dtype", "requests", "output-len", "max-model-len"):
        command += [f"--{name}", str(getattr(arguments, name.replace("-", "_")))]
    command += ["--repeats", str(arguments.repeats)]
    command += ["--dummy"] if arguments.dummy else []
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    for line in done.stdout.splitlines():
        if line.startswith("RATES "):
            rates: dict[str, float] = json.loads(line.removeprefix("RATES "))
            return rates
    sys.exit(f"the {engine} engine failed:\n{done.stdout}\n{done.stderr}")


def report(rounds: list[dict[str, float]], arguments: argparse.Namespace) -> None:
    """Print the table, and everything as JSON on the last line."""
    import torch
    import vllm

    device = platform.processor() or platform.machine()
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    print(
        f"{Path(arguments.model).name}, {arguments.requests} requests with a picture, "
        f"{arguments.output_len} tokens each, {arguments.dtype}; {device}, "
        f"{os.cpu_count()} cores; torch {torch.__version__}, vLLM {vllm.__version__}\n"
    )
    print("| engine | output tokens/s (median) | ratio to plain (median, range) |")
    print("|---|---:|---:|")
    for kind in KINDS:
        ratios = sorted(one[kind] / one["plain"] for one in rounds)
        rate = statistics.median(one[kind] for one in rounds)
        print(
            f"| {kind} | {rate:.0f} | {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}) |"
        )
    result = {"rounds": rounds, "requests": arguments.requests, "device": device}
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result) + "\n")
    print(json.dumps(result))


def main() -> None:
    """Measure all kinds in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=TINY / "model")
    parser.add_argument("--dummy", action="store_true", help="random weights")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3, help="within a process")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--bundle", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=sorted(ENGINES), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    # On CPUs vLLM would else take a share of all memory for its cache.
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    if arguments.worker:
        worker(arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        bundle = Path(temporary) / "bundle"
        write_bundle(arguments.model, bundle)
        rounds = []
        for index in track(range(arguments.rounds), "rounds"):
            rates: dict[str, float] = {}
            for engine in sorted(ENGINES, reverse=index % 2 == 1):
                rates |= measure(engine, arguments, bundle)
            rounds.append(rates)
    report(rounds, arguments)


if __name__ == "__main__":
    main()
