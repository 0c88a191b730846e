# SPDX-License-Identifier: Apache-2.0
"""Bundles on the Hugging Face hub: ``org/name`` or ``org/name@revision``."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from vllm_sauce.bundle.bundle import Bundle
from vllm_sauce.errors import BundleNotFoundError, ConfigError

FILES = ["bundle.json", "sae.*.safetensors"]
"""All that is fetched: a repository may hold more, a bundle may not."""
_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w][\w./-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubName:
    """A repository, and a branch, tag or commit of it."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read ``org/name[@revision]``. Raises: ConfigError"""
        if not is_hub_name(text):
            raise ConfigError(
                f"a bundle on the hub is named org/name or org/name@revision, "
                f"got {text!r}"
            )
        repo, _, revision = text.partition("@")
        return cls(repo, revision or None)


def is_hub_name(text: str) -> bool:
    """Tell a name on the hub from a path: nothing of that name lies here."""
    return _NAME.fullmatch(text) is not None and not Path(text.split("@")[0]).exists()


def bundle_folder(text: str) -> Path:
    """Return a bundle's folder; what is named on the hub is fetched.

    Raises: BundleError, ConfigError
    """
    return pull(HubName.parse(text)) if is_hub_name(text) else Path(text)


def bundles_folder() -> Path:
    """Return where fetched bundles are kept, each under its commit."""
    if mine := os.environ.get("VLLM_SAUCE_CACHE"):
        return Path(mine).expanduser() / "bundles"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "vllm_sauce" / "bundles"


def pull(name: HubName, out: Path | None = None) -> Path:
    """Fetch a bundle, check it whole, and return its folder.

    Without ``out`` it is kept under its commit and not fetched twice; a whole commit as
    revision needs no network then.

    Raises: BundleNotFoundError, BundleCorruptError, UnsupportedSAEError, ConfigError
    """
    if out is not None and out.exists():
        raise ConfigError(f"{out} exists; give a folder that does not")
    commit = _commit(name)
    kept = bundles_folder() / name.repo.replace("/", "--") / commit
    target = out or kept
    if not target.exists():
        _fetch(name.repo, commit, target)
    Bundle.load(target, weights=False)
    return target


def push(folder: str | Path, name: HubName, *, private: bool = False) -> str:
    """Upload a bundle, checked whole first, and return the commit's address.

    Files of an earlier bundle that this one lacks are removed in the same commit.

    Raises: BundleError, ConfigError
    """
    from huggingface_hub import HfApi

    Bundle.load(folder)
    api = HfApi()
    try:
        api.create_repo(name.repo, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=name.repo,
            folder_path=folder,
            revision=name.revision,
            allow_patterns=FILES,
            delete_patterns=FILES,
            commit_message="Upload a vllm-sauce bundle",
        )
    except Exception as error:  # requests', httpx's or its own, by its version
        raise ConfigError(f"cannot push to {name.repo}: {error}") from error
    return str(done.commit_url)


def _commit(name: HubName) -> str:
    if name.revision and _COMMIT.fullmatch(name.revision):
        return name.revision
    try:
        return commit_now(name.repo, name.revision)
    except ConfigError as error:
        raise BundleNotFoundError(
            f"no bundle {name.repo} at {name.revision or 'its main branch'}: {error}; "
            "without a network give a whole commit that was fetched before, or a folder"
        ) from error


def commit_now(repo: str, revision: str | None) -> str:
    """Ask the hub which commit a revision of a repository is now.

    Raises: ConfigError saying what the hub, or the network, said
    """
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(repo, revision=revision).sha
    except Exception as error:  # requests', httpx's or its own, by its version
        raise ConfigError(str(error)) from error
    if not found or not _COMMIT.fullmatch(found):
        raise ConfigError(f"the hub names no commit of {repo}: {found!r}")
    return found


def _fetch(repo: str, commit: str, target: Path) -> None:
    """Fetch into a neighbour of the target and rename: whole, or not there."""
    from huggingface_hub import snapshot_download

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(dir=target.parent, prefix=".pull-")
    except OSError as error:
        raise ConfigError(
            f"cannot write to {target.parent}: {error.strerror}; give --out, or set "
            "VLLM_SAUCE_CACHE to a folder that can be written to"
        ) from error
    with temporary as beside:
        folder = Path(beside) / "bundle"
        try:
            # Into a folder of our own: the hub's cache holds links, which bundles lack.
            snapshot_download(
                repo, revision=commit, local_dir=folder, allow_patterns=FILES
            )
        except Exception as error:  # requests', httpx's or its own, by its version
            raise BundleNotFoundError(
                f"cannot fetch {repo}@{commit}: {error}"
            ) from error
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        Bundle.load(folder)
        try:
            folder.rename(target)
        except OSError:
            # Somebody else fetched the same commit meanwhile.
            if not target.exists():
                raise
