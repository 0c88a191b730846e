# SPDX-License-Identifier: Apache-2.0
"""The files of one foreign checkpoint: found, and read without running anything."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vllm_sauce.errors import (
    BundleCorruptError,
    BundleNotFoundError,
    UnsupportedSAEError,
)
from vllm_sauce.files import read_object, refuse_pointer
from vllm_sauce.sae.config_keys import check_keys
from vllm_sauce.sae.tensors_file import read_tensors

PICKLES = (".pt", ".pth", ".bin")
WEIGHTS = (".safetensors", ".npz", *PICKLES)
"""Endings of the files that can hold an SAE."""

# The first that is there is the SAE; other files beside it are statistics.
_USUAL_NAMES = (
    "sae_weights.safetensors",
    "sae.safetensors",
    "params.safetensors",
    "params.npz",
    "checkpoints/final.safetensors",
    "ae.pt",
)
CONFIGS = ("cfg.json", "hyperparams.json", "config.json")
"""Names of the files that can describe an SAE, the most telling first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One SAE's tensors and what lies beside them."""

    path: Path
    """The file with the tensors."""

    tensors: Mapping[str, Tensor]
    """By the names they have in the file."""

    extras: Mapping[str, object]
    """What else a pickle held: numbers, strings, dicts of those."""

    config: Mapping[str, object]
    """The JSON file that describes the SAE; empty if there is none."""

    config_path: Path | None
    """Where ``config`` was read."""

    def names(self) -> frozenset[str]:
        """Return the names of tensors and extras."""
        return frozenset(self.tensors) | frozenset(self.extras)

    def describe(self) -> str:
        """Return in words what was found."""
        shapes = ", ".join(
            f"{name} {list(tensor.shape)}"
            for name, tensor in sorted(self.tensors.items())
        )
        others = f", and {', '.join(sorted(self.extras))}" if self.extras else ""
        where = self.config_path.name if self.config_path else "no JSON file"
        keys = f" with {', '.join(sorted(self.config)[:12])}" if self.config else ""
        return f"{self.path} holds {shapes or 'no tensors'}{others}; {where}{keys}"

    def pick(self, **names: str) -> dict[str, Tensor]:
        """Return tensors under our names, from those the checkpoint has.

        Raises: UnsupportedSAEError if one is missing
        """
        missing = sorted(set(names.values()) - set(self.tensors))
        if missing:
            raise UnsupportedSAEError(f"no {', '.join(missing)}: {self.describe()}")
        return {ours: self.tensors[theirs] for ours, theirs in names.items()}

    def check_names(self, known: Collection[str]) -> None:
        """Refuse tensors, or other things, that the format has not.

        Raises: UnsupportedSAEError
        """
        if more := sorted(self.names() - set(known)):
            raise UnsupportedSAEError(
                f"{self.path} holds {', '.join(more)} besides an SAE; it may be a "
                f"transcoder or an SAE of another kind. {self.describe()}"
            )

    def check_config(
        self,
        options: Mapping[str, tuple[object, ...]],
        *,
        used: Collection[str] = (),
        inert: Collection[str] = (),
    ) -> None:
        """Refuse keys that nobody knows, and options with other values than the given.

        ``used`` are the other keys that the format reads, ``inert`` those that change
        nothing. What the configuration leaves out is fine.

        Raises: UnsupportedSAEError
        """
        known = [*options, *used]
        check_keys(self.config, self.config_path, used=known, inert=inert)
        for name, allowed in options.items():
            value = self.config.get(name, allowed[0])
            if not any(type(value) is type(x) and value == x for x in allowed):
                raise UnsupportedSAEError(
                    f"{self.config_path}: {name} must be "
                    f"{' or '.join(map(repr, allowed))}, got {value!r}; it changes the "
                    "maths in a way that cannot be served"
                )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read an SAE's file, or the one SAE of a folder, with its configuration.

    Raises: BundleNotFoundError, BundleCorruptError, UnsupportedSAEError
    """
    file = weights_file(Path(path))
    refuse_pointer(file)
    extras: dict[str, object] = {}
    if file.suffix == ".safetensors":
        tensors = read_tensors(file)
    elif file.suffix == ".npz":
        tensors = _read_npz(file)
    else:
        tensors, extras = _read_pickle(file)
    config_path = _config_of(file)
    return Checkpoint(
        path=file,
        tensors=tensors,
        extras=extras,
        config=read_object(config_path, BundleCorruptError) if config_path else {},
        config_path=config_path,
    )


def weights_file(path: Path) -> Path:
    """Return the file that holds the SAE: the path itself, or the one in its folder.

    Raises: BundleNotFoundError, UnsupportedSAEError
    """
    if path.is_file():
        if path.suffix not in WEIGHTS:
            raise UnsupportedSAEError(
                f"an SAE's file ends in {', '.join(WEIGHTS)}, got {path.name}"
            )
        return path
    if not path.is_dir():
        raise BundleNotFoundError(f"no SAE at {path}")
    for name in _USUAL_NAMES:
        if (path / name).is_file():
            return path / name
    found = [file for file in path.iterdir() if file.suffix in WEIGHTS]
    if len(found) == 1:
        return found[0]
    inner = sorted(
        str(file.relative_to(path))
        for file in (found or path.rglob("*"))
        if file.suffix in WEIGHTS
    )
    if not inner:
        raise BundleNotFoundError(f"{path} holds no file that can be an SAE")
    more = f", ... ({len(inner)} in all)" if len(inner) > 8 else ""
    raise UnsupportedSAEError(
        f"{path} holds several SAEs; name one by its path, or with --subfolder: "
        f"{', '.join(inner[:8])}{more}"
    )


def _config_of(file: Path) -> Path | None:
    folders = [file.parent]
    # Both keep training's checkpoints one folder below the description.
    if file.parent.name == "checkpoints":
        folders.append(file.parent.parent)
    for folder in folders:
        for name in CONFIGS:
            if (folder / name).is_file():
                return folder / name
    return None


def _read_npz(path: Path) -> dict[str, Tensor]:
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except Exception as error:
        # zipfile, zlib and numpy raise anything on noise, MemoryError on big promises.
        raise BundleCorruptError(
            f"{path} is no whole npz file of numbers: {error}"
        ) from error


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    try:
        # Mapped, so that a large one is read once; files of before 2020 cannot be.
        mapped = zipfile.is_zipfile(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        # torch's message tells the reader how to run the code: not repeated here.
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise UnsupportedSAEError(
                f"{path} is a pickle that wants to run {named[1]}: refused, and "
                "nothing of it was run; an SAE is tensors and numbers only"
            ) from None
        raise BundleCorruptError(f"{path} is no whole pickle of tensors") from None
    except Exception as error:
        # An unpickler that is fed noise raises anything (KeyError, EOFError, ...).
        raise BundleCorruptError(
            f"{path} is no whole pickle of tensors: {type(error).__name__}"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise UnsupportedSAEError(
            f"{path} must hold a dict of tensors, got {type(loaded).__name__}"
        )
    tensors = {name: x for name, x in loaded.items() if isinstance(x, Tensor)}
    return tensors, {name: x for name, x in loaded.items() if name not in tensors}
