# SPDX-License-Identifier: Apache-2.0
"""Bodies that ask to forget in ways that must never be answered as if they did not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

NOBODY = ["nobody"]
"""A concept that no catalogue has: who is not told so was not heard."""

BODIES: dict[str, dict[str, Any]] = {
    # Right for some routes, so admission's catalogue must be asked; wrong for others.
    "vllm_xargs": {"vllm_xargs": {"sauce_forget": NOBODY}},
    "vllm_xargs nested": {"vllm_xargs": {"sauce": {"forget": NOBODY}}},
    "extra_args": {"sampling_params": {"extra_args": {"sauce_forget": NOBODY}}},
    "chat_request": {"chat_request": {"vllm_xargs": {"sauce_forget": NOBODY}}},
    # Places.
    "top": {"sauce_forget": NOBODY},
    "top nested": {"sauce": {"forget": NOBODY}},
    "top forget": {"forget": NOBODY},
    "extra_args at the top": {"extra_args": {"sauce_forget": NOBODY}},
    "extra_body": {"extra_body": {"vllm_xargs": {"sauce_forget": NOBODY}}},
    "sampling_params": {"sampling_params": {"sauce_forget": NOBODY}},
    "sampling_params xargs": {
        "sampling_params": {"vllm_xargs": {"sauce_forget": NOBODY}}
    },
    "xarg": {"vllm_xarg": {"sauce_forget": NOBODY}},
    "xargs in a list": {"vllm_xargs": [{"sauce_forget": NOBODY}]},
    "one too deep": {"vllm_xargs": {"extra": {"sauce_forget": NOBODY}}},
    "a message": {"messages": [{"role": "user", "sauce_forget": NOBODY}]},
    "metadata": {"metadata": {"sauce_forget": "nobody"}},
    "template": {"chat_template_kwargs": {"sauce_forget": NOBODY}},
    "a tool": {"tools": [{"type": "function", "sauce_forget": NOBODY}]},
    "content of nothing": {"content": {"sauce_forget": NOBODY}},
    "schema of nothing": {"schema": {"sauce_forget": NOBODY}},
    "documents of metadata": {"metadata": {"documents": {"sauce_forget": NOBODY}}},
    # Spellings.
    "space": {" sauce_forget": NOBODY},
    "space in xargs": {"vllm_xargs": {"sauce_forget ": NOBODY}},
    "no-break space": {"vllm_xargs": {"\u00a0sauce_forget": NOBODY}},
    "forget": {"vllm_xargs": {"forget": NOBODY}},
    "hyphen": {"vllm_xargs": {"sauce-forget": NOBODY}},
    "camel": {"vllm_xargs": {"sauceForget": NOBODY}},
    "capitals": {"SAUCE_FORGET": NOBODY},
    "full width": {"vllm_xargs": {"\uff53\uff41\uff55\uff43\uff45_forget": NOBODY}},
    "soft hyphen": {"sau\u00adce_forget": NOBODY},
    "another field": {"vllm_xargs": {"sauce_forgot": NOBODY}},
    "half an emoji": {"sauce\ud83d": NOBODY},
    # Values.
    "no name": {"vllm_xargs": {"sauce_forget": []}},
    "null": {"vllm_xargs": {"sauce_forget": None}},
    "a boolean": {"vllm_xargs": {"sauce_forget": ["seen"], "sauce_strength": False}},
    "text for a number": {
        "vllm_xargs": {"sauce_forget": ["seen"], "sauce_strength": "2"}
    },
    "strength alone": {"vllm_xargs": {"sauce_strength": 2}},
    "nested very deep": {
        "vllm_xargs": {"sauce_forget": json.loads("[" * 900 + "]" * 900)}
    },
    "a mask of one's own": {
        "sampling_params": {"extra_args": {"sauce": {"mask": {"mask_id": "x"}}}}
    },
    "beam search": {"vllm_xargs": {"sauce_forget": ["seen"]}, "use_beam_search": True},
    "beam search by a number": {
        "vllm_xargs": {"sauce_forget": ["seen"]},
        "use_beam_search": 1,
    },
    # Names of what is cached.
    "salt": {"cache_salt": "sauce:x"},
    "uuid": {"messages": [{"content": [{"uuid": "sauce:x"}]}]},
    "content part": {"content_parts": [{"uuid": "sauce:x"}]},
}

RIGHT = {
    "vllm_xargs": ("vllm_xargs",),
    "vllm_xargs nested": ("vllm_xargs",),
    "extra_args": ("sampling_params", "extra_args"),
    "chat_request": ("chat_request", "vllm_xargs"),
}
"""Which of the bodies are wrong by their concept only, where a wish stands there."""


def contents(name: str, place: tuple[str, ...] | None) -> Iterator[str]:
    """Yield a body as it is sent, and with a concept that the random bundle has.

    The second would be carried out where it is understood, so it shows what is not;
    it is left out for a route that carries a wish at the body's place.
    """
    content = json.dumps(BODIES[name])
    yield content
    if RIGHT.get(name, ()) != place:
        yield content.replace(NOBODY[0], "seen")
