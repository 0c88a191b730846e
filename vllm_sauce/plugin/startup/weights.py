# SPDX-License-Identifier: Apache-2.0
"""Files that vLLM would read and that no fingerprint is of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm_sauce.bundle.fingerprint import weights_files
from vllm_sauce.errors import ConfigError, UnsupportedFeatureError
from vllm_sauce.plugin import compat

HASHED = (
    *("auto", "hf", "safetensors", "fastsafetensors", "instanttensor"),
    "bitsandbytes",  # until vLLM 0.31, of that quantisation
)
"""Load formats that read a folder's safetensors files, those of its index if it has
one, as they are hashed. Any other reads other files, or none."""

CONFIGS = ("auto", "hf")
"""Config formats that read ``config.json``, which the fingerprint is of."""

RANDOM = "dummy"

random_allowed = False
"""Whether ``--load-format dummy`` passes, to measure the speed of a shape.

A benchmark sets it in its own process. No flag and no variable does: a server would
answer by random weights as if it had forgotten.
"""


def unhashed(vllm_config: Any) -> list[str]:
    """Return what of a configuration leads vLLM to files that are not compared."""
    found = [*_named(vllm_config)]
    model = getattr(vllm_config.model_config, "model", None)
    revision = getattr(vllm_config.model_config, "revision", None)
    folder = compat.local_model_dir(str(model), revision) if model else None
    # What is not on the disk yet, or in part, is looked at when it has been loaded.
    if folder is None or not (
        Path(str(model)).is_dir() or any(folder.glob("*.safetensors"))
    ):
        return found
    return [*found, *_beside(vllm_config, folder)]


def refuse_strays(vllm_config: Any, folder: Path) -> None:
    """Refuse a model's folder of which vLLM reads other files than are compared.

    Raises: UnsupportedFeatureError
    """
    if found := [*_beside(vllm_config, folder)]:
        raise UnsupportedFeatureError(
            f"the model was loaded from files that nobody compared: {'; '.join(found)}"
        )


def _named(vllm_config: Any) -> Iterator[str]:
    name, model = _load_format(vllm_config), vllm_config.model_config
    if name not in HASHED and not (name == RANDOM and random_allowed):
        what = "random weights" if name == RANDOM else "not the files that are hashed"
        yield f"--load-format {name} ({what}; wanted: {', '.join(HASHED)})"
    if (config_format := _config_format(vllm_config)) not in CONFIGS:
        yield (
            f"--config-format {config_format} (it need not read config.json, which "
            f"is compared; wanted: {', '.join(CONFIGS)})"
        )
    if weights := getattr(model, "model_weights", None):
        yield f"weights at {weights} (name their folder as the model instead)"
    # What lies in a folder is read there.
    if Path(str(getattr(model, "model", "."))).is_dir():
        return
    load = getattr(vllm_config, "load_config", None)
    if elsewhere := getattr(load, "download_dir", None):
        yield (
            f"--download-dir {elsewhere} (files to hash are looked for in Hugging "
            "Face's cache, which HF_HOME moves; or give a folder as the model)"
        )
    if compat.uses_modelscope():
        yield (
            "VLLM_USE_MODELSCOPE (files to hash are looked for in Hugging Face's "
            "cache; fetch the model first, and give its folder)"
        )


def _beside(vllm_config: Any, folder: Path) -> Iterator[str]:
    load_format = _load_format(vllm_config)
    if load_format == RANDOM:
        return
    try:
        hashed = [file.name for file in weights_files(folder)]
    except ConfigError:
        return  # As all that reads the fingerprint says, with what to do.
    if not hashed:
        yield (
            f"weights in {folder} that are not *.safetensors (nothing else is hashed: "
            "save the model as safetensors)"
        )
        return
    preferred = sorted(path.name for path in folder.glob("consolidated*.safetensors"))
    if load_format == "auto" and preferred and preferred != hashed:
        yield (
            f"{', '.join(preferred)} in the model's folder, which vLLM reads instead "
            "of the weights that were hashed (remove it, or set --load-format "
            "safetensors)"
        )
    if (
        _config_format(vllm_config) == "auto"
        and (folder / "params.json").exists()
        and any(folder.glob("consolidated*"))
    ):
        yield (
            "params.json in the model's folder, which vLLM reads instead of the "
            "config.json that is compared (remove it, or set --config-format hf)"
        )


def _load_format(vllm_config: Any) -> str:
    return _name(getattr(vllm_config, "load_config", None), "load_format")


def _config_format(vllm_config: Any) -> str:
    return _name(vllm_config.model_config, "config_format")


def _name(config: Any, field: str) -> str:
    """Return a format's name, which older versions of vLLM give as an enumeration."""
    value = getattr(config, field, "auto")
    return str(getattr(value, "value", value)).lower()
