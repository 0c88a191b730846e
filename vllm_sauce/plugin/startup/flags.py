# SPDX-License-Identifier: Apache-2.0
"""``--plugin`` and the ``--sauce-*`` flags of ``vllm serve`` and ``vllm bench``."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import ConfigError, SauceError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import settings

KNOWN_PLUGINS = ("sauce",)


def install() -> None:
    """Add the flags to every vLLM command line that builds an engine."""
    compat.hook("all", "EngineArgs.add_cli_args", _add_cli_args)


def plugin_names(text: str) -> list[str]:
    """Parse one value of ``--plugin``: a name or several with commas between.

    Raises: argparse.ArgumentTypeError for a name that is not a plugin of ours.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KNOWN_PLUGINS:
            raise argparse.ArgumentTypeError(
                f"unknown plugin {name!r}; known: {', '.join(KNOWN_PLUGINS)} "
                "(a model is named before the flags)"
            )
    if not names:
        raise argparse.ArgumentTypeError(
            f"wanted a plugin's name, got {text!r}; known: {', '.join(KNOWN_PLUGINS)}"
        )
    return names


def add_list(group: Any, flag: str, **options: Any) -> None:
    """Add a flag that takes one or more values, and may be given several times.

    A list of vLLM's ``--config`` file comes as one flag and all of its values: a flag
    of one value would leave the second to be read as the model.
    """
    group.add_argument(flag, nargs="+", action="extend", **options)


def group_of(parser: Any) -> Any:
    """Return a parser's group of our flags, which ``--help=sauce`` shows."""
    for group in parser._action_groups:
        if group.title == "sauce":
            return group
    return parser.add_argument_group(
        title="sauce", description="Concept unlearning per request (vllm-sauce)."
    )


def _add_cli_args(original: Callable[..., Any], parser: Any, *a: Any, **k: Any) -> Any:
    parser = original(parser, *a, **k)
    _add_flags(group_of(parser))
    compat.wrap(parser, "parse_known_args", functools.partial(_parse, parser))
    return parser


def _add_flags(group: Any) -> None:
    add_list(
        group,
        "--plugin",
        type=plugin_names,
        metavar="NAME[,NAME]",
        help="Plugins to switch on. 'sauce': forget concepts per request.",
    )
    group.add_argument(
        "--sauce-bundle",
        metavar="PATH",
        help="Bundle of SAEs and concepts: a folder, or org/name@revision on the hub. "
        "Default: the folder sauce/ in the model's.",
    )
    add_list(
        group,
        "--sauce-forget",
        metavar="NAME",
        help="Concepts every request must forget. May be given several times.",
    )
    group.add_argument(
        "--sauce-require-decoder",
        action="store_const",
        const=True,
        help="Refuse concepts that no decoder site edits: they are forgotten in "
        "pictures only, a question without one is answered as if nothing were.",
    )
    add_list(
        group,
        "--sauce-allow-weak",
        metavar="NAME",
        help="Concepts that are served though the bundle's own figures say that they "
        "are not forgotten; others of that kind are refused.",
    )
    group.add_argument(
        "--sauce-allow-quantized",
        action="store_const",
        const=True,
        help="Serve the model quantised, as a checkpoint (AWQ, GPTQ, ...) or by "
        "--quantization, though the bundle is of its own weights: measure it so with "
        "sauce eval.",
    )
    group.add_argument(
        "--sauce-max-latents",
        type=int,
        metavar="N",
        help="Most latents that the concepts of one request may use at a site.",
    )
    group.add_argument(
        "--sauce-pool-dtype",
        choices=("auto", "fp8"),
        help="How SAE rows are kept on the device: the model's dtype, or fp8 (e4m3).",
    )
    group.add_argument(
        "--sauce-approximate",
        choices=("relu",),
        help="For TopK SAEs: skip the rank test, which is exact, and edit a latent "
        "wherever it is positive.",
    )


def _parse(
    parser: Any,
    original: Callable[..., Any],
    argv: Sequence[str] | None = None,
    *args: Any,
) -> Any:
    """Parse, and put what the flags and variables ask for into ``additional_config``.

    Here, and not where an engine's arguments are made of it: vLLM hands the parsed
    arguments to processes that make theirs before they have loaded a plugin.
    """
    parsed, rest = original(argv, *args)
    try:
        _refuse_no_model(parsed, argv or ())
        _fold(parsed)
        settings.resolve(parsed)
    except SauceError as error:
        parser.error(str(error))
    return parsed, rest


def _fold(args: argparse.Namespace) -> None:
    given = {
        field.name: value
        for field in dataclasses.fields(SauceConfig)
        if (value := getattr(args, f"sauce_{field.name}", None)) is not None
    }
    if not asks(args):
        if given:
            flags = ", ".join(f"--sauce-{name.replace('_', '-')}" for name in given)
            raise ConfigError(
                f"{flags} given without --plugin sauce; add --plugin sauce"
            )
        return
    additional = args.additional_config or {}
    section = additional.get("sauce") if isinstance(additional, Mapping) else additional
    if not isinstance(section, Mapping | None):
        raise ConfigError(
            f"--additional-config wants an object for 'sauce', got {section!r}"
        )
    merged = settings.united(section or {}, given)
    args.additional_config = {**additional, "sauce": merged}


def _refuse_no_model(args: argparse.Namespace, argv: Sequence[str]) -> None:
    """Refuse ``vllm serve --sauce-forget dog MODEL``, which names two concepts.

    vLLM would serve its default model, to which no bundle of anyone's belongs.
    """
    named = getattr(args, "model_tag", "") is not None
    named = named or any(arg.split("=", 1)[0] == "--model" for arg in argv)
    if not named and asks(args):
        last = (args.sauce_forget or [""])[-1]
        taken = f"{last!r} was read as a concept to forget; " if last else ""
        raise ConfigError(
            f"no model is named: {taken}name the model before the flags, as in "
            "vllm serve MODEL --plugin sauce"
        )


def asks(args: argparse.Namespace) -> bool:
    """Say whether a command line names sauce among its plugins."""
    return "sauce" in [name for names in args.plugin or [] for name in names]
