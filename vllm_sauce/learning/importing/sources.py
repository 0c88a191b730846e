# SPDX-License-Identifier: Apache-2.0
"""A local path, or the files of a hub repository that are needed and no others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath

from vllm_sauce.bundle.hub import HubName, is_hub_name
from vllm_sauce.errors import BundleNotFoundError, ConfigError, SauceError


def sae_path(source: str, subfolder: str | None = None) -> Path:
    """Return where an SAE's files are, downloaded if it is ``org/name[@revision]``.

    ``subfolder`` may name a file. Without it the repository must hold one SAE: whole
    repositories of SAEs are hundreds of gigabytes.

    Raises: BundleNotFoundError, ConfigError
    """
    inside = _inside(subfolder or "")
    if Path(source).exists():
        root, missing = Path(source), f"{source} holds no {subfolder}"
    else:
        wanted = partial(_files_of_one_sae, source, subfolder=inside)
        root = _download(source, wanted, BundleNotFoundError)
        missing = (
            f"the hub cannot be reached, and its cache lacks {subfolder} of {source}"
        )
    if not (root / inside).exists():
        raise BundleNotFoundError(missing)
    return root / inside


def model_path(model: str) -> Path:
    """Return a model's folder, downloaded if it is ``org/name[@revision]``.

    Raises: ConfigError
    """
    if Path(model).is_dir():
        return Path(model)

    def wanted(files: list[str]) -> list[str]:
        endings = (".safetensors", ".json", ".jinja", ".model", ".txt")
        return [name for name in files if "/" not in name and name.endswith(endings)]

    root = _download(model, wanted, ConfigError)
    if lacking := _missing_shards(root):
        raise ConfigError(
            f"the hub's cache lacks {_some(lacking)} of {model}; download it whole"
        )
    return root


def _missing_shards(folder: Path) -> set[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return set()
    try:
        names = set(
            json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index} is no list of the model's files") from error
    return {name for name in names if not (folder / str(name)).is_file()}


def _inside(subfolder: str) -> str:
    if PurePosixPath(subfolder).is_absolute() or ".." in PurePosixPath(subfolder).parts:
        raise ConfigError(f"a subfolder lies inside its source, got {subfolder!r}")
    return subfolder.strip("/")


def _files_of_one_sae(source: str, files: list[str], subfolder: str) -> list[str]:
    from vllm_sauce.sae.formats.checkpoint import CONFIGS, WEIGHTS

    if subfolder in files:
        folder = PurePosixPath(subfolder).parent
        places = [folder, folder.parent] if folder.name == "checkpoints" else [folder]
        configs = {str(place / name) for place in places for name in CONFIGS}
        return [subfolder, *(name for name in files if name in configs)]
    above = f"{subfolder}/" if subfolder else ""
    inner = [name for name in files if name.startswith(above)]
    weights = [name for name in inner if name.endswith(WEIGHTS)]
    folders = {str(PurePosixPath(name).parent) for name in weights}
    if not weights:
        others = (PurePosixPath(name) for name in files if name.endswith(WEIGHTS))
        there = _some({str(name.parent) for name in others})
        raise BundleNotFoundError(
            f"{source} holds no SAE{f' in {subfolder}' if subfolder else ''}; "
            f"there are files of weights in {there or 'none of its folders'}"
        )
    # Two: some lay statistics beside the weights.
    if len(folders) > 1 or len(weights) > 2:
        names = sorted(folders) if len(folders) > 1 else sorted(weights)
        raise BundleNotFoundError(
            f"{source} holds {len(names)} SAEs; name one with --subfolder: "
            f"{_some(names)}"
        )
    return [name for name in inner if name.endswith((*WEIGHTS, ".json"))]


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:8]) + (", ..." if len(ordered) > 8 else "")


def _download(
    source: str,
    wanted: Callable[[list[str]], list[str]],
    missing: type[SauceError],
) -> Path:
    if not is_hub_name(source):
        raise missing(f"{source} is neither a path that exists nor a hub name")
    name = HubName.parse(source)
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    fetched = partial(
        huggingface_hub.snapshot_download, name.repo, revision=name.revision
    )
    try:
        files = huggingface_hub.list_repo_files(name.repo, revision=name.revision)
        return Path(fetched(allow_patterns=wanted(files)))
    except SauceError:
        raise
    except (HfHubHTTPError, HFValidationError) as error:
        raise missing(f"the hub has no {source} for us: {error}") from error
    except Exception as error:
        # Which errors a missing network raises, changes from release to release.
        unreachable = error
    try:
        return Path(fetched(local_files_only=True))
    except Exception as incomplete:
        # Clients from 1.0 on miss the files that we never wanted; what we do want is
        # looked for by the caller.
        if found := getattr(incomplete, "snapshot_path", None):
            return Path(found)
        raise missing(
            f"{name.repo} is no local path, is not in the hub's cache, and the hub "
            f"cannot be reached ({type(unreachable).__name__}: {unreachable}); "
            "download it where there is a network and give its folder"
        ) from unreachable
