# SPDX-License-Identifier: Apache-2.0
"""``--plugin`` and the ``--sauce-*`` flags of ``vllm serve`` and ``vllm bench``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from vllm_sauce.errors import ConfigError
from vllm_sauce.plugin import compat

KNOWN_PLUGINS = ("sauce",)


def install() -> None:
    """Add the flags to every vLLM command line that builds an engine."""
    compat.wrap(compat.engine_args_cls(), "add_cli_args", _add_cli_args)
    compat.wrap(compat.engine_args_cls(), "from_cli_args", _from_cli_args)


def plugin_names(text: str) -> list[str]:
    """Parse one value of ``--plugin``: a name or several with commas between.

    Raises: argparse.ArgumentTypeError for a name that is not a plugin of ours.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KNOWN_PLUGINS:
            raise argparse.ArgumentTypeError(
                f"unknown plugin {name!r}; known: {', '.join(KNOWN_PLUGINS)}"
            )
    if not names:
        raise argparse.ArgumentTypeError(
            f"wanted a plugin's name, got {text!r}; known: {', '.join(KNOWN_PLUGINS)}"
        )
    return names


def _add_cli_args(original: Callable[..., Any], parser: Any, *a: Any, **k: Any) -> Any:
    parser = original(parser, *a, **k)
    group = parser.add_argument_group(
        title="sauce", description="Concept unlearning per request (vllm-sauce)."
    )
    group.add_argument(
        "--plugin",
        action="append",
        type=plugin_names,
        default=None,
        metavar="NAME[,NAME]",
        help="Plugins to switch on. 'sauce': forget concepts per request.",
    )
    group.add_argument(
        "--sauce-bundle",
        default=None,
        metavar="PATH",
        help="Bundle of SAEs and concepts: a folder, or org/name@revision on the hub. "
        "Default: the folder sauce/ in the model's.",
    )
    group.add_argument(
        "--sauce-forget",
        action="append",
        default=None,
        metavar="NAME",
        help="A concept every request must forget. May be given several times.",
    )
    group.add_argument(
        "--sauce-max-latents",
        type=int,
        default=None,
        metavar="N",
        help="Most latents that the concepts of one request may use at a site.",
    )
    group.add_argument(
        "--sauce-pool-dtype",
        default=None,
        choices=("auto", "fp8"),
        help="How SAE rows are kept on the device: the model's dtype, or fp8 (e4m3).",
    )
    group.add_argument(
        "--sauce-approximate",
        default=None,
        choices=("relu",),
        help="For TopK SAEs: skip the rank test, which is exact, and edit a latent "
        "wherever it is positive.",
    )
    return parser


def _from_cli_args(
    original: Callable[..., Any], cls: type, args: argparse.Namespace
) -> Any:
    engine_args = original(cls, args)
    given = {
        "bundle": getattr(args, "sauce_bundle", None),
        "forget": getattr(args, "sauce_forget", None),
        "max_latents": getattr(args, "sauce_max_latents", None),
        "pool_dtype": getattr(args, "sauce_pool_dtype", None),
        "approximate": getattr(args, "sauce_approximate", None),
    }
    given = {key: value for key, value in given.items() if value is not None}
    plugins = [name for names in getattr(args, "plugin", None) or [] for name in names]
    if given and "sauce" not in plugins:
        flags = ", ".join(f"--sauce-{key.replace('_', '-')}" for key in given)
        raise ConfigError(f"{flags} given without --plugin sauce; add --plugin sauce")
    if "sauce" in plugins:
        additional = dict(engine_args.additional_config or {})
        additional["sauce"] = {**(additional.get("sauce") or {}), **given}
        engine_args.additional_config = additional
    return engine_args
