# SPDX-License-Identifier: Apache-2.0
"""The fingerprint of a model folder."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from vllm_sauce.bundle.model_config import read_config, read_configs
from vllm_sauce.bundle.schema import ModelFingerprint, TextModel, VisionModel
from vllm_sauce.errors import ConfigError
from vllm_sauce.files import file_sha256, refuse_pointer

_Sizes = TypeVar("_Sizes", TextModel, VisionModel)

INDEX_FILE = "model.safetensors.index.json"
"""Says in which of several files each weight lies."""


def fingerprint_model(
    model_dir: str | Path, *, weights: bool = True
) -> ModelFingerprint:
    """Return the fingerprint of a model folder; ``weights=False`` skips the hash.

    Raises: ConfigError if there is no readable config.json, or no whole weights
    """
    folder = Path(model_dir)
    config = read_config(folder / "config.json")
    text = config.get("text_config", config)
    vision = config.get("vision_config")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise ConfigError(f"{folder / 'config.json'} names no architecture")
    weights_files(folder)
    try:
        return ModelFingerprint.model_validate(
            {
                "architecture": architectures[0],
                "text": _sizes(TextModel, text),
                "vision": _sizes(VisionModel, vision) if vision else None,
                "weights_sha256": weights_sha256(folder) if weights else None,
                "config": read_configs(folder),
            }
        )
    except ValueError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error


def is_quantized(model_dir: str | Path) -> bool:
    """Say whether a model folder's weights are quantised, by its configuration.

    Raises: ConfigError if there is no readable config.json
    """
    folder = Path(model_dir)
    config = read_config(folder / "config.json")
    parts = config, config.get("text_config")
    return (folder / "hf_quant_config.json").exists() or any(
        isinstance(part, dict) and part.get(name)
        for part in parts
        for name in ("quantization_config", "compression_config")
    )


def weights_sha256(model_dir: str | Path) -> str | None:
    """Return a hash over the folder's weights, None if it has none.

    SHA-256 over one "<sha256 of the file>  <file name>\\n" line a file, by name. The
    files are those that the index names, without one all safetensors files.

    Raises: ConfigError if a file is missing or only a pointer to it
    """
    files = weights_files(Path(model_dir))
    if not files:
        return None
    # hashlib lets go of the GIL: shards are hashed side by side.
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = list(pool.map(file_sha256, files))
    lines = (f"{d}  {f.name}\n" for d, f in zip(digests, files, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weights_files(folder: Path) -> list[Path]:
    """Return the files that are hashed, by name.

    Raises: ConfigError if a file is missing or only a pointer to it
    """
    index = folder / INDEX_FILE
    if index.exists():
        weight_map = read_config(index).get("weight_map")
        named = weight_map.values() if isinstance(weight_map, dict) else (None,)
        if not all(isinstance(name, str) for name in named):
            raise ConfigError(f"{index} must say in which file each weight lies")
        files = [folder / name for name in set(map(str, named))]
    else:
        files = list(folder.glob("*.safetensors"))
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{index} names {file.name}, which is missing")
        refuse_pointer(file, ConfigError)
    return sorted(files, key=lambda file: file.name)


def _sizes(model: type[_Sizes], config: object) -> _Sizes:
    if not isinstance(config, dict):
        raise ConfigError("text_config and vision_config must be JSON objects")
    return model.model_validate({name: config.get(name) for name in model.model_fields})
