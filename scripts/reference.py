# SPDX-License-Identifier: Apache-2.0
"""Print docs/reference.md: every option, from the dataclasses that declare them.

python scripts/reference.py > docs/reference.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING
from inspect import Parameter
from typing import Any

from vllm_sauce.cli.app import parser
from vllm_sauce.cli.config_file import options

HEAD = """# Reference of the command line

Made by `scripts/reference.py` from the dataclasses that the stages take; change an
option there. `sauce COMMAND --help` says the same. An option that may be given again
is a list. Exit status: 0 done, 1 as a command says, 2 it could not be done, 130
interrupted. `sauce --traceback COMMAND` shows where an error was raised; `sauce
--version` tells what is installed.
"""
FILE = """
### learn.yaml

`sauce learn --config learn.yaml` takes the same options from a file; a flag overrides
what the file says of that option. A key is a flag without its dashes and with `_` for
`-`, or the field's name in Python; what a stage has of its own stands in its section.
A list of one may be written as a value. A path is relative to the file's folder; so
are `model` and each `sae`, where something lies there, and else they are names on the
hub. A key that is not known, or is there twice, is refused with its line. Everything,
with its default:

```yaml
"""


def commands() -> str:
    """Return the options of all commands, as cyclopts writes them."""
    text: str = parser.generate_docs(output_format="markdown")
    parts = re.split(r"^## sauce ", text, flags=re.M)[1:]
    kept = [part for part in parts if not part.startswith("--")]
    body = "".join(f"## sauce {part.rstrip()}\n\n" for part in kept)
    # Of every command, told above; and docstrings' lines, indented as in the code.
    body = body.replace("* `--traceback`: Show where an error was raised.\n", "")
    body = body.replace("**Parameters**:\n\n\n", "")
    return re.sub(r"\n {4,}(?=\S)", " ", body)


def as_yaml() -> Iterator[str]:
    """Return every option that a file may hold, with its default."""
    section = ""
    arguments = parser["learn"].assemble_argument_collection(parse_docstring=True)
    own = {key: one for key, one in options(arguments).items() if _is_flag(key, one)}
    for key, one in sorted(own.items(), key=lambda item: "." in item[0]):
        above, _, name = key.rpartition(".")
        if above != section:
            yield f"{above}:"
            section = above
        yield f"{'  ' * bool(above)}{name}: {_default(one)}"


def _is_flag(key: str, argument: Any) -> bool:
    flag = argument.name.lstrip("-").replace("-", "_")
    return key.rpartition(".")[2] == flag


def _default(argument: Any) -> str:
    value = argument.field_info.default
    if value in (MISSING, Parameter.empty):
        return "# wanted" if argument.required else "{}"
    if isinstance(value, bool | None):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return "{}" if isinstance(value, Mapping) else str(value)


def main() -> None:
    """Print the page."""
    learn = "\n".join(as_yaml())
    text = commands().replace(
        "## sauce pull\n", f"{FILE.lstrip()}{learn}\n```\n\n## sauce pull\n"
    )
    sys.stdout.write(f"{HEAD}\n{text.rstrip()}\n")


if __name__ == "__main__":
    main()
