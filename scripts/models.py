# SPDX-License-Identifier: Apache-2.0
"""Make docs/models.md, of the table of architectures and what the tests measured.

python scripts/models.py --measure       runs tests/plugin/models, on a CPU: 40 minutes
python scripts/models.py --measure NAME  one model's alone; the others' are kept
python scripts/models.py                 writes the page anew from docs/models.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from vllm_sauce.models.architectures import (  # noqa: E402
    LAYERS,
    NOT_IN_FLOAT16,
    VISION_ROWS,
)

MEASURED = ROOT / "docs" / "models.json"
PAGE = ROOT / "docs" / "models.md"
RUNS = tuple(
    (runner, mode) for runner in ("v1", "v2") for mode in ("eager", "compiled")
)
"""On a CPU Triton's interpreter runs V2's own kernels, and the model is compiled."""

HEAD = """# Models

Made by `scripts/models.py` of the table in `vllm_sauce/models/architectures.py` and of
`docs/models.json`, which holds what `tests/plugin/models` measured. Each number is the
largest difference between vLLM with the plugin and transformers with the same edit on
the same module, in the log-probabilities of the {logprobs} likeliest next tokens; plain
and edited prompts are in one batch. The models are tiny and random, of a public
checkpoint's layout: vLLM {vllm} and transformers {transformers} on a CPU, float32 (bf16:
bfloat16). The edits move the same log-probabilities by {least:.2g} at least. The numbers
here are of the first token; the tests of text models go on for four. What a model of full
size and trained weights does, this does not say, nor what a GPU does.

A server trusts none of it. Before it listens, the canary cuts the model at its vision
sites (two pictures must become equal, bit for bit) and moves a vector between the tensors
that a layer leaves; a model that does not behave as its row says is refused.

**Your model is not here?** A decoder site needs its class of layers in the second table,
a vision site its architecture in the first. The refusal names the class; add a row
(at most a few lines, below) and its test, or ask for it.

## Vision sites

`vision` is what enters the connector. Models that hand on several layers of their tower
have `vision.1`, `vision.2`, …: a concept edits all of these or none, unless calibration
measured a part. Videos are refused where a concept is edited at the tower; decoder sites take them.
Each of these is learnt from, too: planned, harvested, an SAE trained and rows fitted, latents selected,
calibrated and shown, at all its sites and behind a layer (`tests/plugin/models/test_learn_rows.py`). SmolVLM's own processor
wants the package `num2words`, for vLLM as for us.
"""
LAYERS_HEAD = """
## Decoder layers

By the exact class in vLLM, whichever model holds it. The stream is the *sum* of two
tensors, the *first* of two, or the *single* one. "transformers." stands before classes
that vLLM takes from transformers because it has none of its own.
"""
FOOT = """
## Refused

| what | why |
|---|---|
| Gemma 3n | four streams side by side (AltUp); answers differ from transformers by 0.5 without any edit |
| DeepSeek-V3, Zamba 2 | vLLM's answers differ from transformers' on a CPU without any edit (by 0.8, and from the first hybrid layer on): nothing to compare with |
| {scaled} in float16 | they scale the stream there |
| Mamba 1, Jamba, OLMo-Hybrid | kernels that vLLM has for GPUs only: not tried |
| Qwen3-Next as text | bfloat16 on CPUs; its layers are Qwen3.5's, which were tried with pictures |
| MiniMax-M2, DBRX, LongCat-Flash | vLLM does not load, on a CPU, what transformers writes |
| InternLM 2, ChatGLM, MiniCPM, EXAONE 3, Orion, Solar, Step | code in the checkpoint: no class of transformers' to compare with |
| Pixtral (mistral format), MiniCPM-V, Molmo, Phi-3-V, Phi-4-MM, DeepSeek-OCR, Step3-VL, InternVLChat, Ovis, Kimi-VL: vision | no row yet; decoder layers of classes above are editable |
| Granite 4 Vision and other models of several towers: vision | features go around one site |
| compiled encoders, encoder CUDA graphs, precomputed image embeddings | go around the site |

Known of vLLM on CPUs, and not of the edit: Gemma 3 and PaliGemma attend to pictures from
left to right there, transformers both ways (compared with transformers told to do the
same); LFM2's rotation is wrong with more than one head (compared with one); Aria attends
to the padding of pictures that are not square (compared with square ones); GLM-4.7-Flash's
layers answer otherwise when compiled, without any edit (by 2.1: "not run"); Llama 3.2 Vision runs
past what was compiled in a step that encodes a picture ("not run"; `test_mllama.py` has the steps
after it, beside transformers); a compiled SmolLM2
in half precision makes NaN on V2, whose kernels run in Triton's interpreter there, without
sauce, too; Cohere 2 differs by 1e-3 on prompts longer than its
layers' window, without any edit (compared with shorter ones).

## To add a row

1. Decoder layers: the class and one word in `LAYERS`; a row in
   `tests/plugin/models/text_models.py`.
2. A vision site: a `VisionRow` in `architectures.py`, of which most are one line: where
   the connector is, and how wide its input is if not the tower's width; a builder in
   `tests/plugin/models/` beside the others.
3. `python scripts/models.py --measure`, which runs the tests and writes this page.
"""


def measure(only: Sequence[str]) -> None:
    """Run the tests of rows, once a runner and mode, and keep what they found."""
    lines: list[Any] = []
    for runner, mode in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            record = Path(folder) / "record.jsonl"
            told = {
                "SAUCE_TEST_RUNNER": runner,
                "SAUCE_TEST_MODE": mode,
                "SAUCE_TEST_RECORD": str(record),
                "VLLM_CPU_KVCACHE_SPACE": "1",
            }
            some = ["-k", " or ".join(only)] if only else []
            tests = [*some, "tests/plugin/models"]
            command = [sys.executable, "-m", "pytest", "-q", *tests]
            subprocess.run(command, cwd=ROOT, env={**os.environ, **told}, check=False)
            text = record.read_text() if record.exists() else ""
            lines += [json.loads(line) for line in text.splitlines()]
    if only:
        measured = {line["model"] for line in lines}
        kept = json.loads(MEASURED.read_text())["lines"]
        lines = [line for line in kept if line["model"] not in measured] + lines
    MEASURED.write_text(json.dumps({"versions": versions(), "lines": lines}, indent=0))


def versions() -> dict[str, str]:
    """Return what was measured with."""
    from importlib.metadata import version

    return {
        "vllm": version("vllm").partition("+")[0],
        "transformers": version("transformers"),
    }


def page(measured: Mapping[str, Any]) -> str:
    """Return docs/models.md."""
    lines = measured["lines"]
    pictures = [line for line in lines if line["architecture"] in VISION_ROWS]
    least = min(line["moved"] for line in lines)
    head = HEAD.format(least=least, logprobs=20, **measured["versions"])
    scaled = ", ".join(sorted(NOT_IN_FLOAT16))
    return "".join(
        (
            head,
            _table(("architecture", "sites", "connector"), _vision_rows(pictures)),
            LAYERS_HEAD,
            _table(("layers", "stream", "tried with"), _layer_rows(lines)),
            FOOT.format(scaled=scaled),
        )
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    runs = [f"{runner.upper()} {mode}" for runner, mode in RUNS]
    lines = [[*head, *runs], ["---"] * (len(head) + len(runs)), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _vision_rows(lines: Sequence[Mapping[str, Any]]) -> Iterable[list[str]]:
    for name, row in VISION_ROWS.items():
        mine = [line for line in lines if line["architecture"] == name]
        for model in dict.fromkeys(line["model"] for line in mine):
            found = [line for line in mine if line["model"] == model]
            sites = [site for site in found[0]["sites"] if site.startswith("vision")]
            paths = row.connector + (f", {row.branches}" if row.branches else "")
            yield [
                f"`{name}` ({model})",
                ", ".join(sites),
                f"`{paths}`",
                *_differences(found),
            ]


def _layer_rows(lines: Sequence[Mapping[str, Any]]) -> Iterable[list[str]]:
    for layer, form in LAYERS.items():
        mine = [line for line in lines if layer in line["layers"]]
        tried = ", ".join(dict.fromkeys(line["model"] for line in mine))
        yield [f"`{layer}`", form, tried, *_differences(mine)]


def _differences(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for runner, mode in RUNS:
        here = [x for x in lines if (x["runner"], x["mode"]) == (runner, mode)]
        worst = max(here, key=lambda line: line["difference"], default=None)
        if worst is None:
            found.append("not run")
        else:
            half = " (bf16)" if worst["dtype"] == "bfloat16" else ""
            found.append(f"{worst['difference']:.0e}{half}")
    return found


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2:])
    PAGE.write_text(page(json.loads(MEASURED.read_text())), encoding="utf-8")
