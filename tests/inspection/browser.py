# SPDX-License-Identifier: Apache-2.0
"""Open a page in a real browser and ask it something."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
NO_BROWSER = (
    "no Chromium on the path; on Debian, apt-get install chromium-headless-shell"
)

needs_browser = pytest.mark.skipif(
    # CI has one, and must not skip in silence.
    CHROMIUM is None and os.environ.get("SAUCE_TEST_BROWSER") != "needed",
    reason=NO_BROWSER,
)

_ASK = """
<script>
addEventListener("load", () => {{
  const answer = (() => {{ {script} }})();
  const out = document.createElement("pre");
  out.id = "answer";
  out.textContent = JSON.stringify(answer);
  document.body.append(out);
}});
</script>
"""


def ask_page(
    page: Path, script: str, folder: Path, width: int = 1400
) -> tuple[Any, list[str]]:
    """Return what a script in the page returns, and what the console said.

    The page is copied to ``folder`` with the script at its end.
    """
    assert CHROMIUM is not None, NO_BROWSER
    asking = folder / f"asking-{width}.html"
    asking.write_text(page.read_text() + _ASK.format(script=script))
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--enable-logging=stderr", f"--window-size={width},900"),
            *(f"--user-data-dir={folder / 'profile'}", asking.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-3000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console
