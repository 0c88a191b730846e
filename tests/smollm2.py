# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct, a language model that nobody here made, once a checkout."""

import tempfile
from pathlib import Path

from smollm2.convert import convert, download
from tests.places import ROOT
from vllm_sauce.errors import ConfigError
from vllm_sauce.files import locked

FOLDER = ROOT / ".cache" / "smollm2"


def smollm2() -> Path:
    """Return its folder; the first call downloads and converts it."""
    FOLDER.parent.mkdir(exist_ok=True)
    # Two files of tests may want it at the same time.
    with locked(FOLDER.parent, ConfigError):
        if not FOLDER.is_dir():
            with tempfile.TemporaryDirectory(dir=FOLDER.parent) as folder:
                made = Path(folder) / "model"
                convert(download(Path(folder)), made)
                made.rename(FOLDER)
    return FOLDER
