# SPDX-License-Identifier: Apache-2.0
"""Where things lie in the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
TINY = EXAMPLES / "tiny"
TINY_MODEL = TINY / "model"
TINY_PICTURES = TINY / "pictures"
