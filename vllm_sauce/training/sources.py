# SPDX-License-Identifier: Apache-2.0
"""A local path, or the files of a hub repository that are needed and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from vllm_sauce.bundle.hub import HubName, is_hub_name
from vllm_sauce.errors import BundleNotFoundError, ConfigError, SauceError


def sae_path(source: str, subfolder: str | None = None) -> Path:
    """Return where an SAE's files are, downloaded if it is ``org/name[@revision]``.

    ``subfolder`` may name a file. Without it the repository must hold one SAE: whole
    repositories of SAEs are hundreds of gigabytes.

    Raises: BundleNotFoundError, ConfigError
    """
    if Path(source).exists():
        found = Path(source) / _inside(subfolder) if subfolder else Path(source)
        if not found.exists():
            raise BundleNotFoundError(f"{source} holds no {subfolder}")
        return found

    def wanted(files: list[str]) -> list[str]:
        return _files_of_one_sae(source, files, _inside(subfolder or ""))

    root = _download(source, wanted, BundleNotFoundError)
    found = root / _inside(subfolder or "")
    if not found.exists():
        raise BundleNotFoundError(
            f"the hub cannot be reached, and its cache lacks {subfolder} of {source}"
        )
    return found


def model_path(model: str) -> Path:
    """Return a model's folder, downloaded if it is ``org/name[@revision]``.

    Raises: ConfigError
    """
    if Path(model).is_dir():
        return Path(model)

    def wanted(files: list[str]) -> list[str]:
        endings = (".safetensors", ".json", ".jinja", ".model", ".txt")
        return [name for name in files if "/" not in name and name.endswith(endings)]

    return _download(model, wanted, ConfigError)


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
    inner = [
        name for name in files if not subfolder or name.startswith(f"{subfolder}/")
    ]
    weights = [name for name in inner if name.endswith(WEIGHTS)]
    folders = {str(PurePosixPath(name).parent) for name in weights}
    if not weights:
        raise BundleNotFoundError(f"{source} holds no SAE in {subfolder or 'its root'}")
    # Two: some lay statistics beside the weights.
    if len(folders) > 1 or len(weights) > 2:
        names = sorted(folders) if len(folders) > 1 else sorted(weights)
        raise BundleNotFoundError(
            f"{source} holds {len(names)} SAEs; name one with --subfolder: "
            f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        )
    return [name for name in inner if name.endswith((*WEIGHTS, ".json"))]


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

    try:
        files = huggingface_hub.list_repo_files(name.repo, revision=name.revision)
        return Path(
            huggingface_hub.snapshot_download(
                name.repo, revision=name.revision, allow_patterns=wanted(files)
            )
        )
    except SauceError:
        raise
    except (HfHubHTTPError, HFValidationError) as error:
        raise missing(f"the hub has no {source} for us: {error}") from error
    except Exception as error:
        # Which errors a missing network raises, changes from release to release.
        return _cached(name, missing, error)


def _cached(name: HubName, missing: type[SauceError], error: Exception) -> Path:
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name.repo, revision=name.revision, local_files_only=True
            )
        )
    except Exception:
        raise missing(
            f"{name.repo} is no local path, is not in the hub's cache, and the hub "
            f"cannot be reached ({type(error).__name__}: {error}); download it where "
            "there is a network and give its folder"
        ) from error
