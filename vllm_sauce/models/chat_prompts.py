# SPDX-License-Identifier: Apache-2.0
"""A user's words and picture as a chat request brings them to a model in vLLM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from vllm_sauce.errors import ConfigError

_PUTS_FIRST = {"PaliGemmaProcessor"}
"""Processors that put pictures before all words, whatever a prompt says."""

FALLBACKS = {
    "paligemma": "{% for message in messages %}{{ message['content'] }}{% endfor %}"
}
"""Templates that vLLM takes where a model of the table has none, by its type.

Source: vLLM 0.32, transformers_utils/chat_templates/registry.py
"""


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
    if not shown and type(processor).__name__ in _PUTS_FIRST:
        processor = processor.tokenizer  # it reads no words without a picture
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
    wrap = _in_parts if _takes_parts(processor) else _in_words
    return [
        _rendered(processor, wrap(processor, prompt, picture)) for prompt in prompts
    ]


def _takes_parts(processor: Any) -> bool:
    """Say whether a template goes through a message's parts, as vLLM finds it to.

    What knows words alone fails at a list, or writes it as Python or JSON has it.
    """
    probe = "sauce"
    parts = _in_parts(processor, probe, False)
    try:
        text = _rendered(processor, parts)
    except ConfigError:
        return False
    whole = (str(parts), json.dumps(parts))
    return probe in text and not any(one in text for one in whole)


def _in_parts(processor: Any, prompt: str, picture: bool) -> Any:
    return [*[{"type": "image"}] * picture, {"type": "text", "text": prompt}]


def _in_words(processor: Any, prompt: str, picture: bool) -> Any:
    if not picture or type(processor).__name__ in _PUTS_FIRST:
        return prompt
    if (mark := getattr(processor, "image_token", None)) is None:
        raise ConfigError("the model's chat template takes words and no pictures")
    return f"{mark}\n{prompt}"


def _rendered(processor: Any, content: Any) -> str:
    from jinja2 import TemplateError

    chat = [{"role": "user", "content": content}]
    try:
        text: str = processor.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False
        )
    # A template calls what it likes on what it is given.
    except (ValueError, TypeError, TemplateError) as error:
        raise ConfigError(f"the model cannot chat: {error}") from error
    return text
