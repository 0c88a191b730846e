# SPDX-License-Identifier: Apache-2.0
"""What a body was found to ask for: kept until its request is admitted, then told.

A body is read raw, before vLLM's models, which drop what they do not know; its request
is admitted after them. Both must have come to the same mask, and the answer says which.
"""

from __future__ import annotations

import json
import logging
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vllm_sauce.errors import InvalidRequestError
from vllm_sauce.unlearning.mask import Mask

if TYPE_CHECKING:
    from starlette.types import Message, Send

_log = logging.getLogger("vllm.sauce")

FORGET_HEADER, MASK_HEADER = b"sauce-forget", b"sauce-mask"
MAX_HEADER_BYTES = 2048
"""Proxies take 4 KiB of headers, all of them together."""


@dataclass(frozen=True, slots=True)
class Promise:
    """The mask of a request, and what of it the client asked for."""

    mask: Mask | None
    asked: tuple[str, ...] = ()

    def kept_of_asked(self) -> dict[str, float]:
        """Return the strengths of the concepts that the client named."""
        pairs = () if self.mask is None else self.mask.concepts
        asked = frozenset(self.asked)
        return {name: strength for name, strength in pairs if name in asked}

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of an answer, none where nothing is forgotten.

        What the operator makes mandatory is not listed; it is in the mask's id alone.
        """
        if self.mask is None:
            return []
        named = self.kept_of_asked()
        text = json.dumps(named)
        if len(text) > MAX_HEADER_BYTES:
            text = json.dumps(len(named))
        return [
            (FORGET_HEADER, text.encode("ascii")),
            (MASK_HEADER, self.mask.mask_id.encode("ascii")),
        ]

    def told_in(self, send: Send) -> Send:
        """Return a ``send`` that adds the headers to an answer, not to an error."""

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 200:
                told = [*message.get("headers", ()), *self.headers()]
                message = {**message, "headers": told}
            await send(message)

        return telling


promised: ContextVar[Promise | None] = ContextVar("promised", default=None)
"""What the body that is being answered asks for; None where nobody has read one."""


def refuse_broken(mask: Mask | None) -> None:
    """Refuse a request whose mask is not the one that its body was found to ask for.

    Raises: InvalidRequestError
    """
    promise = promised.get()
    if promise is None or promise.mask == mask:
        return
    # What is mandatory is the log's to tell, not the answer's.
    _log.error("a body asks for %s, %s reached the engine", promise.mask, mask)
    asked = ", ".join(promise.kept_of_asked()) or "nothing"
    raise InvalidRequestError(
        f"the body asks to forget {asked}, but another wish reached the engine; "
        "refusing to answer as if that had been forgotten. Something between vLLM's "
        "route and its engine changed the request's vllm_xargs"
    )
