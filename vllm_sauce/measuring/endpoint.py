# SPDX-License-Identifier: Apache-2.0
"""Asks a server by the OpenAI client, as any of its users would."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from vllm_sauce.client import forget_body
from vllm_sauce.data.samples import open_picture
from vllm_sauce.errors import ConfigError, SauceError
from vllm_sauce.evaluation.asking.asker import Answer, Ask, Progress

CLIENTS = 16
"""Requests under way at a time."""
SAYS = "sauce-forget"
"""What a server says of an answer in which something was forgotten."""


@dataclass(slots=True)
class EndpointAsker:
    """Whole answers of a server; it tells no log-probabilities of answers' tokens."""

    url: str
    model: str

    @property
    def tokenizer(self) -> Any:
        """Raises: ConfigError, for a server keeps its own"""
        raise ConfigError("a server's tokens are not known here")

    def ask(
        self, asks: Sequence[Ask], progress: Progress = lambda done, total: None
    ) -> list[Answer]:
        """Return the answers, in their order.

        Raises: SauceError with what the server said
        """
        import openai

        client = openai.OpenAI(base_url=self.url, api_key="none")

        def answer(ask: Ask) -> Answer:
            try:
                raw = client.chat.completions.with_raw_response.create(
                    **_body(self.model, ask)
                )
                choice = raw.parse().choices[0]
            except openai.OpenAIError as error:
                raise SauceError(f"{self.url}: {error}") from error
            if not _says(raw.headers.get(SAYS), ask):
                raise SauceError(
                    f"{self.url} was asked to forget {', '.join(ask.forget)}, and its "
                    f"answer does not say that it did (header {SAYS}: "
                    f"{raw.headers.get(SAYS)}): is that vllm-sauce, with nothing in "
                    "between that takes away vllm_xargs or headers?"
                )
            text = (choice.message.content or "").strip()
            return Answer(text, finished=choice.finish_reason == "stop")

        answers = []
        with ThreadPoolExecutor(CLIENTS) as pool:
            for found in pool.map(answer, asks):
                answers.append(found)
                progress(len(answers), len(asks))
        return answers


def _says(header: str | None, ask: Ask) -> bool:
    """Tell whether an answer says that all was forgotten that an ask wants."""
    if not ask.edited:
        return True  # what an operator makes mandatory is forgotten then, too
    try:
        said = json.loads(header or "null")
    except ValueError:
        return False
    if isinstance(said, int):  # instead of a long list
        return said == len(set(ask.forget))
    strengths = said if isinstance(said, dict) else {}
    return all(strengths.get(name, 0) >= ask.strength for name in ask.forget)


def picture_part(picture: Any) -> dict[str, Any]:
    """Return a picture as a part of a chat message, as clients send it."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    url = {"url": f"data:image/png;base64,{data}"}
    return {"type": "image_url", "image_url": url}


def _body(model: str, ask: Ask) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if ask.question.picture is not None:
        content.append(picture_part(open_picture(ask.question.picture)))
    content.append({"type": "text", "text": ask.question.prompt})
    extra: dict[str, Any] = {}
    if ask.edited:
        extra |= forget_body(*ask.forget, strength=ask.strength)
    if ask.banned:
        extra["bad_words"] = list(ask.banned)
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": ask.max_tokens,
        "extra_body": extra,
    }
