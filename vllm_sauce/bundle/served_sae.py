# SPDX-License-Identifier: Apache-2.0
"""One site's SAE where it lies ready to be served: in a bundle, or saved by SAELens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vllm_sauce.bundle.bundle import Bundle
from vllm_sauce.bundle.reading import BUNDLE_FILE
from vllm_sauce.bundle.schema import ModelFingerprint
from vllm_sauce.errors import BundleMismatchError, ConfigError
from vllm_sauce.files import read_object

if TYPE_CHECKING:
    from vllm_sauce.sae import SAEWeights

_SAE_LENS_FILE = "cfg.json"


def is_served_sae(path: Path) -> bool:
    """Say whether a folder is a bundle or an SAE as SAELens saves it."""
    if (path / BUNDLE_FILE).is_file():
        return True
    try:
        return "architecture" in read_object(path / _SAE_LENS_FILE, ConfigError)
    except (OSError, ConfigError):
        return False


def read_sae(path: Path, site: str, harvested: ModelFingerprint) -> SAEWeights:
    """Read one site's SAE; a bundle's must be of the model that was harvested.

    Raises: BundleError, ConfigError
    """
    from vllm_sauce.sae import from_sae_lens

    if (path / _SAE_LENS_FILE).is_file():
        return from_sae_lens(path)
    bundle = Bundle.load(path)
    differences = bundle.fingerprint.differences(harvested)
    if differences:
        raise BundleMismatchError(
            f"{path} belongs to another model than was harvested: "
            f"{'; '.join(differences)}"
        )
    if site not in bundle.sites:
        raise ConfigError(
            f"{path} has SAEs at {', '.join(sorted(bundle.sites))}, not {site!r}"
        )
    return bundle.sites[site].weights
