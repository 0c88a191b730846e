# SPDX-License-Identifier: Apache-2.0
"""``vllm bench serve``: the benchmark's client asks to forget, as a user's would."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from vllm_sauce.client import forget_body
from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import flags


def install() -> None:
    """Add the flags to the client; its module is imported only where it is the job."""
    if sys.argv[1:3] != ["bench", "serve"]:
        return
    compat.hook("bench", "add_cli_args", _add_cli_args)
    compat.hook("bench", "main", _main)


def _add_cli_args(original: Callable[..., Any], parser: Any) -> Any:
    result = original(parser)
    group = parser.add_argument_group(
        title="sauce", description="Ask the server to forget concepts (vllm-sauce)."
    )
    flags.add_list(
        group,
        "--plugin",
        type=flags.plugin_names,
        metavar="NAME[,NAME]",
        help="Plugins the server runs; 'sauce' allows --sauce-forget here.",
    )
    flags.add_list(
        group,
        "--sauce-forget",
        metavar="NAME",
        help="Concepts every request of the benchmark asks to forget.",
    )
    return result


def merged_extra_body(args: argparse.Namespace) -> dict[str, Any] | None:
    """Return the benchmark's ``extra_body`` with what it shall forget.

    Raises: ConfigError without ``--plugin sauce``.
    """
    body: dict[str, Any] | None = args.extra_body
    if not args.sauce_forget:
        return body
    if not flags.asks(args):
        raise ConfigError("--sauce-forget given without --plugin sauce; add it")
    ours: Any = forget_body(*args.sauce_forget)["vllm_xargs"]
    xargs = {**((body or {}).get("vllm_xargs") or {}), **ours}
    return {**(body or {}), "vllm_xargs": xargs}


def _main(original: Callable[..., Any], args: argparse.Namespace) -> Any:
    args.extra_body = merged_extra_body(args)
    return original(args)
