# SPDX-License-Identifier: Apache-2.0
"""Llama 3.2 Vision at the widths of the 11B checkpoint, few layers, random weights.

python -m tests.plugin.models.full_width    15 GB of memory, some 10 minutes of a CPU
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch

from tests.plugin.models import crossing
from tests.plugin.models.compared import (
    Asked,
    Reference,
    answers,
    largest,
    picture,
    start,
    write_bundle,
)
from tests.plugin.models.parts import Built

TOKENS = 2
WORDS, PICTURE = 128_256, 128_256
"""The vocabulary of Llama 3; ``<|image|>`` is the first token beyond it."""


def built() -> Built:
    """Build it: of 40 layers four, the third crosses; of the tower's 32 six."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        MllamaConfig,
        MllamaForConditionalGeneration,
        MllamaImageProcessor,
        MllamaProcessor,
        PreTrainedTokenizerFast,
    )

    words = {f"w{i}": i for i in range(WORDS)} | {crossing.WORD: PICTURE}
    made = Tokenizer(models.WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="w128000",
        eos_token="w128001",
        extra_special_tokens={"image_token": crossing.WORD},
    )
    config = MllamaConfig(
        vision_config={
            "image_size": 560,
            "num_hidden_layers": 6,
            "num_global_layers": 1,
            "intermediate_layers_indices": [0, 1, 2, 3, 4],
        },
        text_config={
            "num_hidden_layers": 4,
            "cross_attention_layers": [2],
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
        image_token_index=PICTURE,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = MllamaForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    for name, weight in model.named_parameters():
        if "gate" in name and weight.numel() == 1:
            torch.nn.init.constant_(weight, 0.8)  # zero, it would shut a picture out
    side = {"height": 560, "width": 560}
    pictures = MllamaImageProcessor(size=side, max_image_tiles=4)
    return Built(model, MllamaProcessor(pictures, tokenizer))


def written(folder: Path) -> Path:
    """Write it as it is published: several files, Meta's names, in bfloat16."""
    made = built()
    made.model.save_pretrained(folder, max_shard_size="2GB")
    made.processor.save_pretrained(folder)
    return folder


def asked() -> list[Asked]:
    """Text alone, one tile and four, with text before the picture; edited and not.

    Not text alone behind the layer of cross-attention: transformers passes it over, and
    what hangs on it; here the stream is edited there.
    """
    before = "w101 w7 w93 w2048"
    small, large = picture(0, 560, 560), picture(1, 1120, 1120)
    return [
        Asked("w128000 w5 w77 w901 w12"),
        Asked("w128000 w5 w77 w901 w12", forget=("read",)),
        Asked(f"w128000 {crossing.WORD} w17 w4", small, ("both",)),
        Asked(f"w128000 {before} {crossing.WORD} w17 w4", small, ("across",)),
        Asked(f"w128000 {before} {crossing.WORD} w17 w4", large),
        Asked(f"w128000 {before} {crossing.WORD} w17 w4", large, ("seen",)),
    ]


def main() -> None:
    """Print how far vLLM is from transformers."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        model = written(Path(folder) / "model")
        gc.collect()
        bundle = write_bundle(Path(folder) / "bundle", model, "decoder.2")
        reference: Any = Reference(model, bundle)
        wanted = [reference.answer(one, TOKENS) for one in asked()]
        plain = [reference.logprobs(Asked(it.prompt, it.picture)) for it in asked()]
        del reference
        gc.collect()
        print(f"transformers answered, {time.monotonic() - began:.0f} s", flush=True)
        options: dict[str, Any] = {
            "max_model_len": 8192,
            "max_num_batched_tokens": 8192,
        }
        room: dict[str, Any] = {
            "kv_cache_memory_bytes": 1 << 30,
            "limit_mm_per_prompt": {"image": 1},
        }
        llm = start(model, bundle, dtype="float32", **options, **room)
        for one, (tokens, steps), (right, told), before in zip(
            asked(), answers(llm, asked(), TOKENS), wanted, plain, strict=True
        ):
            print(
                f"{'picture ' + str(one.picture.size) if one.picture else 'text':24}"
                f"forget {','.join(one.forget) or 'nothing':8}"
                f"tokens equal: {tokens == right}, "
                f"log-probabilities within {max(map(largest, steps, told)):.1e}, "
                f"the edit moved them by {largest(steps[0], before):.2g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
