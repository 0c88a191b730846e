# SPDX-License-Identifier: Apache-2.0
"""Pages from templates."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def pages_of(folder: Path) -> Environment:
    """Return what fills a folder's templates.

    Everything that comes from data is escaped: a concept may be called ``<script>``.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
