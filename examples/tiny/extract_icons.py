# SPDX-License-Identifier: Apache-2.0
"""Cut the forty icons of the world out of unpacked ``@iconify-json`` packages.

``npm pack @iconify-json/noto`` (and twemoji, fluent-emoji-flat, fluent-emoji),
unpack each into FOLDER/<style>/package, then
``PYTHONPATH=examples python -m tiny.extract_icons FOLDER``.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tiny.concepts import ICON_IDS, STYLES

ICON_FOLDER = Path(__file__).parent / "icons"


def extract(package: Path) -> dict[str, Any]:
    """Return the needed icons of one package, with its name, version and licence."""
    icons = json.loads((package / "icons.json").read_text())
    info = json.loads((package / "info.json").read_text())
    version = json.loads((package / "package.json").read_text())["version"]
    kept = {}
    for concept, icon_id in (pair for d in ICON_IDS.values() for pair in d.items()):
        icon = icons["icons"][icon_id]
        box = [
            icon.get("left", 0),
            icon.get("top", 0),
            icon.get("width", icons.get("width", 16)),
            icon.get("height", icons.get("height", 16)),
        ]
        kept[concept] = {"id": icon_id, "view_box": box, "body": icon["body"]}
    return {
        "package": f"@iconify-json/{info['prefix']}",
        "version": version,
        "licence": info["license"]["spdx"],
        "author": info["author"],
        "icons": kept,
    }


def main(folder: Path) -> None:
    """Write ``icons/<style>.json`` for every style."""
    for style in STYLES:
        text = json.dumps(extract(folder / style / "package"), indent=1)
        (ICON_FOLDER / f"{style}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
