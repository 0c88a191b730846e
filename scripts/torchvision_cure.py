# SPDX-License-Identifier: Apache-2.0
"""Let a CUDA build of torchvision be imported beside CPU torch, where needed.

torchvision's Python code registers fake kernels for operators that only its compiled
library declares, and dies when that library does not load. Declaring the operators
first is enough; nothing vLLM uses calls them. The cure is a start-up file of the
virtual environment, so that it also covers the ``vllm`` command and its subprocesses.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

MODULE = "_torchvision_cure"
CODE = '''\
"""Declare torchvision's operators before it is imported (see scripts/)."""

import sys


class _Finder:
    library = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "torchvision" or cls.library is not None:
            return None
        import torch

        cls.library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            cls.library.define(
                f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        return None


sys.meta_path.insert(0, _Finder)
'''


def imports() -> bool:
    """Tell whether torchvision can be imported in a fresh interpreter."""
    command = [sys.executable, "-c", "import torchvision"]
    return subprocess.run(command, capture_output=True).returncode == 0


def main() -> int:
    """Write the cure if torchvision does not import without it."""
    if imports():
        return 0
    site = Path(sysconfig.get_paths()["purelib"])
    (site / f"{MODULE}.py").write_text(CODE)
    (site / f"{MODULE}.pth").write_text(f"import {MODULE}\n")
    if not imports():
        sys.exit("setup: torchvision cannot be imported, with or without the cure")
    return 0


if __name__ == "__main__":
    sys.exit(main())
