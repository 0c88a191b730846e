# SPDX-License-Identifier: Apache-2.0
"""An SAE's safetensors file: header checked without torch, tensors read with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from vllm_sauce.bundle.schema import SiteFile
from vllm_sauce.errors import BundleCorruptError
from vllm_sauce.files import refuse_pointer

if TYPE_CHECKING:
    from vllm_sauce.sae import SAEWeights

_DTYPES = ("F32", "F16", "BF16")


def check_header(path: Path, site: SiteFile) -> None:
    """Check names, shapes, types and the size of an SAE file against its entry.

    Raises: BundleCorruptError
    """
    refuse_pointer(path)
    d_model, d_sae = site.d_model, site.d_sae
    want = {
        "W_enc": [d_model, d_sae],
        "W_dec": [d_sae, d_model],
        "b_enc": [d_sae],
        "b_dec": [d_model],
    }
    if site.architecture == "jumprelu":
        want["threshold"] = [d_sae]
    try:
        # Opening refuses a file that is not as long as its header says.
        with safe_open(path, framework="np") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise BundleCorruptError(
            f"{path} is no whole safetensors file: {error}"
        ) from error
    if set(found) != set(want):
        raise BundleCorruptError(
            f"{path} must hold {sorted(want)}, got {sorted(found)}"
        )
    for name, shape in want.items():
        got, dtype = list(found[name].get_shape()), found[name].get_dtype()
        if got != shape or dtype not in _DTYPES:
            raise BundleCorruptError(
                f"{path}: {name} must be {shape} of {', '.join(_DTYPES)}, "
                f"got {got} of {dtype}"
            )


def read_weights(path: Path, site: SiteFile) -> SAEWeights:
    """Read an SAE whose header has been checked.

    Raises: BundleNotFoundError, BundleCorruptError
    """
    from vllm_sauce.sae import Row, SAEWeights
    from vllm_sauce.sae.tensors_file import read_tensors

    sae = SAEWeights(
        **read_tensors(path),
        architecture=site.architecture,
        apply_b_dec_to_input=site.apply_b_dec_to_input,
        k=site.k,
        normalize_activations=site.normalize_activations,
        rows=tuple(Row(**row.model_dump()) for row in site.rows),
    )
    if not sae.finite():
        raise BundleCorruptError(
            f"{path} must hold finite numbers, got NaN or infinity"
        )
    return sae
