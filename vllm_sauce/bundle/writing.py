# SPDX-License-Identifier: Apache-2.0
"""Atomic writing of a bundle folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vllm_sauce.bundle.reading import BUNDLE_FILE
from vllm_sauce.errors import BundleError
from vllm_sauce.files import sync


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Give a new folder that takes the target's place when the block ends well.

    If anything fails, the target stays as it was.

    Raises: BundleError if the target holds something that is no bundle
    """
    check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{target.name}.new-", dir=target.parent, ignore_cleanup_errors=True
    ) as name:
        fresh = Path(name)
        yield fresh
        # mkdtemp and safetensors make things private; a server may be another user.
        fresh.chmod(0o755)
        for path in fresh.iterdir():
            path.chmod(0o644)
            sync(path)
        sync(fresh)
        _swap(fresh, target)
        sync(target.parent)


def _swap(fresh: Path, target: Path) -> None:
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
    kept = old / target.name
    if target.exists():
        target.rename(kept)
    try:
        fresh.rename(target)
    # An interrupt, too: whatever happens here, one of the two is left.
    except BaseException:
        if kept.exists():
            kept.rename(target)
        old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(target: Path) -> None:
    """Refuse to replace what is no bundle. Raises: BundleError"""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BundleError(f"{target} must be a folder, got a file or a link")
    if not target.exists():
        return
    strange = [
        path.name
        for path in target.iterdir()
        if path.name != BUNDLE_FILE
        and not (path.name.startswith("sae.") and path.suffix == ".safetensors")
    ]
    if strange:
        raise BundleError(
            f"{target} holds {sorted(strange)[0]!r}, which is no bundle's file; "
            "save to another path"
        )
