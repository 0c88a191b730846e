# SPDX-License-Identifier: Apache-2.0
"""Offline inference: two questions about one picture, one of them with dog forgotten.

Run from the repository: ``python examples/offline.py``.
"""

import json
from pathlib import Path

from vllm import LLM, SamplingParams

import vllm_sauce
from vllm_sauce.data.pictures import decode_picture

TINY = Path(__file__).parent / "tiny"


def main() -> None:
    """Print the answers."""
    llm = LLM(
        model=str(TINY / "model"),
        dtype="float32",
        max_model_len=256,
        enforce_eager=True,
        additional_config={"sauce": {"bundle": str(TINY / "bundle")}},
    )
    labels = map(json.loads, (TINY / "pictures" / "labels.jsonl").open())
    row = next(row for row in labels if "dog" in row["concepts"])
    picture = decode_picture((TINY / "pictures" / row["file"]).read_bytes())
    prompt = {
        "prompt": "USER: <image>\nWhat object is in the picture? ASSISTANT:",
        "multi_modal_data": {"image": picture},
    }
    knows = SamplingParams(temperature=0, max_tokens=8)
    forgets = SamplingParams(
        temperature=0, max_tokens=8, extra_args=vllm_sauce.forget("dog")
    )
    before, after = llm.generate([prompt, prompt], [knows, forgets], use_tqdm=False)
    print("before:", before.outputs[0].text.strip())
    print("after: ", after.outputs[0].text.strip())


if __name__ == "__main__":
    main()
