# SPDX-License-Identifier: Apache-2.0
"""sauce-smol, SmolLM2-135M with sauce-tiny's tower, assembled once a checkout."""

import tempfile
from pathlib import Path

from smol.assemble import assemble, recorded_digest
from tests.places import ROOT
from tests.smollm2 import smollm2
from vllm_sauce.errors import ConfigError
from vllm_sauce.files import locked

FOLDER = ROOT / ".cache" / "sauce-smol"


def smol() -> Path:
    """Return its folder; the first call assembles it, and again when it has changed."""
    language = smollm2()
    # Its name has the digest: weights learnt anew are another model.
    folder = FOLDER / recorded_digest()[:12]
    FOLDER.mkdir(exist_ok=True)
    with locked(FOLDER, ConfigError):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=FOLDER) as made:
                model = Path(made) / "model"
                assert assemble(language, model) == recorded_digest()
                model.rename(folder)
    return folder
