# SPDX-License-Identifier: Apache-2.0
"""The OpenAI client against a server that forgets.

Start the server first, from the repository::

    vllm serve examples/tiny/model --plugin sauce --dtype float32 \\
        --sauce-bundle examples/tiny/bundle --served-model-name sauce-tiny

then ``python examples/serve_and_ask.py [http://localhost:8000/v1]``.
"""

import base64
import json
import sys
from pathlib import Path

from openai import OpenAI

import vllm_sauce

PICTURES = Path(__file__).parent / "tiny" / "pictures"


def main() -> None:
    """Ask the same question with and without forgetting the dog."""
    url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000/v1"
    client = OpenAI(base_url=url, api_key="none")
    labels = map(json.loads, (PICTURES / "labels.jsonl").open())
    row = next(row for row in labels if "dog" in row["concepts"])
    data = base64.b64encode((PICTURES / row["file"]).read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "What object is in the picture?"},
    ]
    for extra_body in ({}, vllm_sauce.forget_body("dog")):
        raw = client.chat.completions.with_raw_response.create(
            model="sauce-tiny",
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
            temperature=0,
            max_tokens=8,
            extra_body=extra_body,
        )
        said = raw.parse().choices[0].message.content
        print("forgotten:", raw.headers.get("sauce-forget", "nothing"), "->", said)


if __name__ == "__main__":
    main()
