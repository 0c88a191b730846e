# SPDX-License-Identifier: Apache-2.0
"""Many masks in one batch: sixteen requests, each forgetting something else.

Run from the repository: ``python examples/many_masks.py``.
"""

import json
from pathlib import Path

from vllm import LLM, SamplingParams

import vllm_sauce
from vllm_sauce.data.pictures import decode_picture

TINY = Path(__file__).parent / "tiny"


def main() -> None:
    """Describe sixteen pictures; request i forgets what picture i shows first."""
    llm = LLM(
        model=str(TINY / "model"),
        dtype="float32",
        max_model_len=256,
        max_num_seqs=32,
        enforce_eager=True,
        additional_config={"sauce": {"bundle": str(TINY / "bundle")}},
    )
    rows = [json.loads(line) for line in (TINY / "pictures/labels.jsonl").open()][:16]
    prompts = [
        {
            "prompt": "USER: <image>\nDescribe the picture. ASSISTANT:",
            "multi_modal_data": {
                "image": decode_picture((TINY / "pictures" / row["file"]).read_bytes())
            },
        }
        for row in rows
    ]
    params = [
        SamplingParams(
            temperature=0,
            max_tokens=12,
            extra_args=vllm_sauce.forget(row["concepts"][0], strength=1.0),
        )
        for row in rows
    ]
    for row, output in zip(rows, llm.generate(prompts, params), strict=True):
        shown = ", ".join(row["concepts"])
        print(f"{shown} | forgets {row['concepts'][0]} | {output.outputs[0].text}")


if __name__ == "__main__":
    main()
