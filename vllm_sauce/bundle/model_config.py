# SPDX-License-Identifier: Apache-2.0
"""What a model's configuration files say of it, without what changes nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from vllm_sauce.bundle.schema import ConfigFile
from vllm_sauce.errors import ConfigError
from vllm_sauce.files import read_object

FILES: tuple[ConfigFile, ...] = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""Where layers are chosen and activations, and what pictures are before the tower."""

NOISE = frozenset(
    (
        # Who wrote it, and in which type: the server's own choice.
        *("transformers_version", "_name_or_path", "name_or_path", "_commit_hash"),
        *("torch_dtype", "dtype", "use_cache", "id2label", "label2id"),
        # Compared by other fields, or by leave of --sauce-allow-quantized.
        *("architectures", "quantization_config", "compression_config"),
        # What is said and when it ends; requests choose it, too.
        *("bos_token_id", "eos_token_id", "pad_token_id", "chat_template"),
        *("do_sample", "max_length", "max_new_tokens", "min_length", "num_beams"),
        *("top_p", "repetition_penalty", "length_penalty"),
        # Which class of transformers' reads it; what it reads is compared.
        "processor_class",
    )
)
"""Keys at any depth that change neither weights nor activations."""


def read_configs(folder: Path) -> dict[ConfigFile, dict[str, object]]:
    """Return what each of a model's files says, a dotted key for each value.

    Raises: ConfigError if there is no readable config.json
    """
    found = {}
    for name in FILES:
        if name == FILES[0] or (folder / name).exists():
            found[name] = dict(_flat(read_config(folder / name)))
    return found


def read_config(path: Path) -> dict[str, object]:
    """Return the object of a model's file. Raises: ConfigError"""
    try:
        return read_object(path, ConfigError)
    except OSError as error:
        raise ConfigError(f"no model here, cannot read {path}: {error}") from error


def _flat(
    config: Mapping[str, object], outer: str = ""
) -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if key in NOISE:
            continue
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{outer}{key}.")
        else:
            yield f"{outer}{key}", _finite(value)


def _finite(value: object) -> object:
    """Return a value with infinities as text: a bundle's JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [_finite(one) for one in value]
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return value
