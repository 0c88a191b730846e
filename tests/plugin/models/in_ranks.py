# SPDX-License-Identifier: Apache-2.0
"""A language model of the table, served by two ranks, against transformers.

``python -m tests.plugin.models.in_ranks NAME tensor|pipeline``: plain and edited
prompts in one batch, edits behind all layers but the first. Prints one line.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.plugin.models.compared import (
    Asked,
    Reference,
    answers,
    largest,
    start,
    write_bundle,
)
from tests.plugin.models.test_decoder_rows import PROMPTS, TOKENS
from tests.plugin.models.text_models import TEXT_MODELS, write_text_model
from tests.plugin.support import MODEL

os.environ.setdefault("VLLM_HOST_IP", "127.0.0.1")


def compare(name: str, kind: str, folder: Path) -> str:
    """Return in words how the answers of two ranks are those of transformers."""
    model = write_text_model(folder, name, MODEL)
    bundle = write_bundle(folder / "bundle", model)
    reference = Reference(model, bundle)
    asked = [
        Asked(prompt, forget=mask) for prompt in PROMPTS for mask in ((), ("read",))
    ]
    # Before the engine: serving transformers' own layers changes their classes.
    unedited = [reference.logprobs(Asked(one.prompt)) for one in asked]
    wanted = [reference.answer(one, TOKENS) for one in asked]
    ranks: Any = {f"{kind}_parallel_size": 2}
    llm = start(model, bundle, dtype="float32", **ranks)
    equal, worst, least = 0, 0.0, float("inf")
    for one, (tokens, steps), (right, told), plain in zip(
        asked, answers(llm, asked, TOKENS), wanted, unedited, strict=True
    ):
        equal += tokens == right
        worst = max(worst, *map(largest, steps, told))
        if one.forget:
            least = min(least, largest(steps[0], plain))
    sites = [report["sites"] for report in llm.collective_rpc("sauce_report")]
    return (
        f"{name} ({TEXT_MODELS[name].form}), {kind}: {equal} of {len(asked)} answers "
        f"equal, log-probabilities within {worst:.1e}, edits move them by {least:.2g}; "
        f"sites of each rank: {sites}"
    )


if __name__ == "__main__":
    name, kind = sys.argv[1:]
    with tempfile.TemporaryDirectory() as made:
        sys.stdout.write(compare(name, kind, Path(made)) + "\n")
