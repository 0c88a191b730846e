# SPDX-License-Identifier: Apache-2.0
"""``vllm bench serve``: its requests ask a server to forget, in their bodies."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vllm_sauce.bundle import hub
from vllm_sauce.client import forget_body, has_sauce_keys
from vllm_sauce.concepts import Catalogue
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.bench.masks import FLAG, Masks, add_flag, masks_of, where_asked
from vllm_sauce.plugin.frontend.admission import Admission
from vllm_sauce.plugin.startup import flags
from vllm_sauce.unlearning.mask import without_decoder

_SHORT: dict[str, dict[str, Any]] = {
    "/chat/completions": {
        "messages": [{"role": "user", "content": "a"}],
        "max_tokens": 2,
    },
    "/completions": {"prompt": "a", "max_tokens": 2},
    "/responses": {"input": "a", "max_output_tokens": 2},
}
"""The shortest request of each route that the client's backends ask, by its end; of one
token none is taken where answers alone are edited."""
NOBODY = "vllm-sauce-bench-asks-whether-this-is-refused"


def install() -> None:
    """Add the flag to the client, and have its requests ask."""
    compat.hook("bench serve", "add_cli_args", _add_cli_args, imported=True)
    compat.hook("bench serve", "main", _main, imported=True)


def _add_cli_args(original: Callable[..., Any], parser: Any) -> Any:
    result = original(parser)
    group = flags.group_of(parser)
    flags.add_list(
        group,
        "--plugin",
        type=flags.plugin_names,
        metavar="NAME[,NAME]",
        help=f"Plugins that the server runs; 'sauce' allows {FLAG} here.",
    )
    group.add_argument(
        "--sauce-bundle",
        metavar="PATH",
        help="The server's bundle, which random:N draws concepts from: a folder, or "
        "org/name@revision on the hub.",
    )
    add_flag(parser)
    return result


@where_asked
def _main(original: Callable[..., Any], args: argparse.Namespace) -> Any:
    asking = Asking.of(args)
    compat.hook("bench serve", "benchmark", asking.benchmark)
    result = original(args)
    if result["failed"]:
        raise ConfigError(
            f"{result['failed']} of the benchmark's requests failed: its figures are "
            "of the others alone"
        )
    return result


@dataclass(frozen=True, slots=True)
class Asking:
    """What the requests ask for, and what is known here of it."""

    masks: Masks
    catalogue: Catalogue | None = None

    @classmethod
    def of(cls, args: argparse.Namespace) -> Asking:
        """Read a command line. Raises: ConfigError, BundleError"""
        wish = args.sauce_bench_forget
        if not flags.asks(args):
            raise ConfigError(
                f"{FLAG} given without --plugin sauce; add --plugin sauce"
            )
        if args.sauce_bundle is None:
            if wish.names:
                return cls((wish.names,))
            raise ConfigError(
                f"{FLAG} random:N draws from a bundle's concepts, and servers list "
                "none: add --sauce-bundle, with the one that the server has"
            )
        folder = str(hub.bundle_folder(args.sauce_bundle))
        # Which weak concepts the server allows is for it to say.
        admission = Admission.open(SauceConfig(bundle=folder, allow_weak=wish.names))
        masks = masks_of(wish, admission, args.seed)
        return cls(masks, admission.bundle.catalogue)

    async def benchmark(self, original: Callable[..., Any], **run: Any) -> Any:
        """Put masks into the requests of a run that is about to begin.

        Raises: ConfigError when the server would not hear of them
        """
        self.refuse_unread(run["input_requests"])
        await self._try_server(run)
        in_turn = itertools.cycle(self.masks)
        run["input_requests"] = [
            replace(request, request_overrides=asked(run["extra_body"], request, names))
            for request, names in zip(run["input_requests"], in_turn, strict=False)
        ]
        return await original(**run)

    def refuse_unread(self, requests: list[Any]) -> None:
        """Refuse concepts of pictures where a request has none. Raises: ConfigError"""
        text = any(
            isinstance(one.prompt, str)
            and not one.multi_modal_data
            and not one.chat_messages
            for one in requests
        )
        if not text:
            return
        if self.catalogue is None:
            raise ConfigError(
                f"{FLAG} and requests of text want --sauce-bundle, the server's: "
                "nothing else tells here whether the concepts are of pictures only"
            )
        for names in self.masks:
            if len(without_decoder(names, self.catalogue)) == len(set(names)):
                raise ConfigError(
                    f"{FLAG}: {', '.join(names)} would be forgotten in pictures only, "
                    "and requests of this dataset have none"
                )

    async def _try_server(self, run: Mapping[str, Any]) -> None:
        """Ask once for a concept that nobody has, then for each mask.

        Raises: ConfigError with what the server says
        """
        import httpx

        headers = dict(run["extra_headers"] or {})
        if key := os.environ.get("OPENAI_API_KEY"):
            headers.setdefault("Authorization", f"Bearer {key}")
        short = _short_request(run)
        async with httpx.AsyncClient(
            headers=headers, verify=run["ssl_context"] is not False, timeout=None
        ) as http:

            async def ask(*names: str) -> httpx.Response:
                body = short | asked(run["extra_body"], None, names)
                return await http.post(run["api_url"], json=body)

            reply = await _first_reply(ask, run)
            if reply.status_code != 400 or "unknown concept" not in reply.text:
                raise ConfigError(
                    f"{run['api_url']} does not hear what requests ask to forget: one "
                    "for a concept that nobody has was answered "
                    f"{reply.status_code} {_said(reply)!r}; start the server with "
                    "--plugin sauce"
                )
            replies = await asyncio.gather(*(ask(*names) for names in self.masks))
        for names, reply in zip(self.masks, replies, strict=True):
            if reply.status_code != 200:
                raise ConfigError(
                    f"{FLAG}: the server refuses {', '.join(names)}: {_said(reply)}"
                )


def asked(
    extra_body: Mapping[str, Any] | None, request: Any, names: tuple[str, ...]
) -> dict[str, Any]:
    """Return a request's own fields, which vLLM lays over the benchmark's.

    Raises: ConfigError when there is another wish in either
    """
    own: dict[str, Any] = getattr(request, "request_overrides", None) or {}
    xargs: dict[str, Any] = {}
    for body in (extra_body or {}, own):
        xargs |= body.get("vllm_xargs") or {}
    if has_sauce_keys(xargs):
        raise ConfigError(
            f"{FLAG}, and vllm_xargs of --extra-body or the dataset, both say what to "
            "forget; leave one of them out"
        )
    ours: Any = forget_body(*names)["vllm_xargs"]
    return {**own, "vllm_xargs": {**xargs, **ours}}


def _short_request(run: Mapping[str, Any]) -> dict[str, Any]:
    """Raises: ConfigError for a route of which nobody knows that it carries a wish."""
    for end, body in _SHORT.items():
        if run["api_url"].endswith(end):
            return {**body, "model": run["model_name"] or run["model_id"]}
    raise ConfigError(
        f"{FLAG} is not for --backend {run['endpoint_type']} at {run['api_url']}: "
        f"that carries no wish to forget; take one that asks {' or '.join(_SHORT)}"
    )


async def _first_reply(ask: Callable[[str], Any], run: Mapping[str, Any]) -> Any:
    """Ask for a concept that nobody has, as long as the benchmark waits for a server.

    Raises: ConfigError when nobody listens
    """
    import httpx

    deadline = time.monotonic() + run["ready_check_timeout_sec"]
    while True:
        try:
            return await ask(NOBODY)
        except httpx.TransportError as error:
            if time.monotonic() >= deadline:
                raise ConfigError(
                    f"no server answers at {run['api_url']}: {error}"
                ) from None
            await asyncio.sleep(1)


def _said(reply: Any) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (json.JSONDecodeError, KeyError, TypeError):
        return str(reply.text)[:300]
