# SPDX-License-Identifier: Apache-2.0
"""An SAE's safetensors file: header checked without torch, tensors read with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_sauce.bundle.schema import SiteFile
from vllm_sauce.errors import BundleCorruptError
from vllm_sauce.files import refuse_pointer

if TYPE_CHECKING:
    from vllm_sauce.sae import SAEWeights

_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_LONGEST_HEADER = 1 << 20


def check_header(path: Path, site: SiteFile) -> None:
    """Check names, shapes, types and the size of an SAE file against its entry.

    Raises: BundleCorruptError
    """
    header, data_size = _read_header(path)
    d_model, d_sae = site.d_model, site.d_sae
    want = {
        "W_enc": [d_model, d_sae],
        "W_dec": [d_sae, d_model],
        "b_enc": [d_sae],
        "b_dec": [d_model],
    }
    if site.architecture == "jumprelu":
        want["threshold"] = [d_sae]
    header.pop("__metadata__", None)
    if set(header) != set(want):
        raise BundleCorruptError(
            f"{path} must hold {sorted(want)}, got {sorted(header)}"
        )
    total = 0
    for name, shape in want.items():
        entry = header[name]
        if not isinstance(entry, dict) or entry.get("shape") != shape:
            raise BundleCorruptError(f"{path}: {name} must be {shape}, got {entry}")
        if entry.get("dtype") not in _BYTES:
            raise BundleCorruptError(
                f"{path}: {name} must be one of {', '.join(_BYTES)}, "
                f"got {entry.get('dtype')!r}"
            )
        size = _BYTES[entry["dtype"]]
        for length in shape:
            size *= length
        total += size
    if total != data_size:
        raise BundleCorruptError(
            f"{path} must hold {total} bytes of tensors, got {data_size}: truncated?"
        )


def read_weights(path: Path, site: SiteFile) -> SAEWeights:
    """Read an SAE whose header has been checked.

    Raises: BundleNotFoundError, BundleCorruptError
    """
    from vllm_sauce.sae import SAEWeights
    from vllm_sauce.sae.tensors_file import read_tensors

    sae = SAEWeights(
        **read_tensors(path),
        architecture=site.architecture,
        apply_b_dec_to_input=site.apply_b_dec_to_input,
        k=site.k,
        normalize_activations=site.normalize_activations,
    )
    if not sae.finite():
        raise BundleCorruptError(
            f"{path} must hold finite numbers, got NaN or infinity"
        )
    return sae


def _read_header(path: Path) -> tuple[dict[str, object], int]:
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LONGEST_HEADER):
            raise BundleCorruptError(f"{path} is no whole safetensors file")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleCorruptError(f"{path}: bad safetensors header: {error}") from error
    if not isinstance(header, dict):
        raise BundleCorruptError(f"{path}: bad safetensors header")
    return header, size - 8 - length
