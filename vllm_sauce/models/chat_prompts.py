# SPDX-License-Identifier: Apache-2.0
"""A user's words and picture as a chat request brings them to a model in vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_sauce.errors import ConfigError


def chat_inputs(
    processor: Any, prompts: Sequence[str], pictures: Sequence[Any] = ()
) -> Any:
    """Return what a processor makes of prompts with a picture each, or none at all.

    The chat template alone says whether there is a first token: a tokenizer that adds
    its own would double what many templates write.

    Source: vLLM 0.32, entrypoints/common/offline.py (``_preprocess_chat``)
    Raises: ConfigError if the model has no chat template
    """
    texts = chat_texts(processor, prompts, picture=bool(pictures))
    # One list a prompt: what Gemma 3 wants, and LLaVA takes.
    shown = {"images": [[picture] for picture in pictures]} if pictures else {}
    return processor(
        text=texts,
        **shown,
        return_tensors="pt",
        # A tokenizer without a padding token can still read one prompt.
        padding=len(texts) > 1,
        add_special_tokens=False,
    )


def chat_texts(
    processor: Any, prompts: Sequence[str], *, picture: bool = False
) -> list[str]:
    """Return prompts in the model's chat template. Raises: ConfigError"""
    images = [{"type": "image"}] * picture
    # A model of text alone has a template that knows no parts.
    in_parts = hasattr(processor, "image_processor")
    texts = []
    for prompt in prompts:
        content = [*images, {"type": "text", "text": prompt}] if in_parts else prompt
        chat = [{"role": "user", "content": content}]
        try:
            text = processor.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=False
            )
        except ValueError as error:
            raise ConfigError(f"the model cannot chat: {error}") from error
        texts.append(text)
    return texts
