# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct, a language model that nobody here made, once a checkout."""

import tempfile
from pathlib import Path

from smollm2.convert import convert, download
from tests.places import ROOT

FOLDER = ROOT / ".cache" / "smollm2"


def smollm2() -> Path:
    """Return its folder; the first call downloads and converts it."""
    if not FOLDER.is_dir():
        FOLDER.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER.parent) as folder:
            made = Path(folder) / "model"
            convert(download(Path(folder)), made)
            made.rename(FOLDER)
    return FOLDER
