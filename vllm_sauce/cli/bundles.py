# SPDX-License-Identifier: Apache-2.0
"""``sauce push``, ``sauce pull`` and ``sauce diff``: bundles travel and change."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def push(
    folder: Path, name: str, *, private: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """Check a bundle and upload it.

    Parameters
    ----------
    folder
        The bundle's folder.
    name
        org/name or org/name@revision on the Hugging Face hub.
    private
        Make a new repository private.
    """
    from vllm_sauce.bundle import hub

    _say(hub.push(folder, hub.HubName.parse(name), private=private))


def pull(name: str, *, out: Path | None = None, model: Path | None = None) -> None:
    """Fetch a bundle, check it, and print its folder.

    Parameters
    ----------
    name
        org/name or org/name@revision on the Hugging Face hub.
    out
        A new folder. Default: the cache.
    model
        Check that the bundle belongs to this model.
    """
    from vllm_sauce.bundle import Bundle, hub

    folder = hub.pull(hub.HubName.parse(name), out)
    if model is not None:
        Bundle.load(folder, weights=False).check_model(model)
    _say(folder)


def stamp(folder: Path, model: Path, *, out: Path | None = None) -> None:
    """Add to a bundle what its model's config.json says, so that a start compares it.

    Parameters
    ----------
    folder
        A bundle that was made before bundles held it.
    model
        The folder of the model that it was made for, as it was then.
    out
        A new folder. Default: the bundle is replaced.
    """
    from vllm_sauce.bundle import Bundle

    bundle = Bundle.load(folder).stamped(model)
    bundle.save(out or folder)
    _say(bundle.digest)


def diff(old: str, new: str) -> int:
    """Say what changed between two bundles; exit status 1 if anything did.

    Parameters
    ----------
    old
        A folder, or a name on the hub.
    new
        A folder, or a name on the hub.
    """
    from vllm_sauce.bundle import Bundle, hub
    from vllm_sauce.bundle.difference import differences

    lines = differences(
        *(Bundle.load(hub.bundle_folder(text), weights=False) for text in (old, new))
    )
    _say("\n".join(lines) or "no difference")
    return int(bool(lines))


def _say(what: object) -> None:
    sys.stdout.write(f"{what}\n")
