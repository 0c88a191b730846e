# SPDX-License-Identifier: Apache-2.0
"""A bundle: SAEs of one or more sites, a catalogue, and the model they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vllm_sauce.bundle.fingerprint import fingerprint_model, is_quantized
from vllm_sauce.bundle.reading import BUNDLE_FILE, check_hash, member, parse
from vllm_sauce.bundle.schema import (
    BundleFile,
    ConceptFile,
    ModelFingerprint,
    RowFile,
    SiteFile,
)
from vllm_sauce.bundle.tensors import check_header, read_weights
from vllm_sauce.bundle.writing import replaced_folder
from vllm_sauce.concepts import Catalogue
from vllm_sauce.errors import BundleError, BundleMismatchError, UnsupportedSAEError

if TYPE_CHECKING:
    from torch import Tensor

    from vllm_sauce.sae import SAEWeights

# Copied from vllm_sauce.sae, which imports torch; a test keeps them equal.
_ARCHITECTURES = ("jumprelu", "standard", "topk")


@dataclass(frozen=True, slots=True, eq=False)
class SiteSAE:
    """One site's SAE."""

    entry: SiteFile
    """What bundle.json says of it: file, sha256, architecture, sizes, activation."""

    loaded: SAEWeights | None = None
    """The weights, None if the bundle was loaded without."""

    @property
    def weights(self) -> SAEWeights:
        """The weights. Raises: BundleError if the bundle was loaded without"""
        if self.loaded is None:
            raise BundleError("this bundle was loaded with weights=False")
        return self.loaded


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """The unit that is shipped, loaded and versioned."""

    fingerprint: ModelFingerprint
    """The model the SAEs were trained on."""

    sites: Mapping[str, SiteSAE]
    """SAEs by site name."""

    catalogue: Catalogue
    """The concepts."""

    digest: str
    """SHA-256 of bundle.json's bytes."""

    together: Mapping[int, Mapping[str, float]]
    """What was measured of so many concepts forgotten at once, by their number."""

    _raw: bytes = field(repr=False)

    @classmethod
    def load(cls, path: str | Path, *, weights: bool = True) -> Bundle:
        """Read and check a bundle; ``weights=False`` checks all but reads no tensor.

        Raises: BundleNotFoundError, BundleCorruptError, UnsupportedSAEError
        """
        folder = Path(path)
        raw = member(folder, BUNDLE_FILE).read_bytes()
        parsed, catalogue = parse(raw, folder / BUNDLE_FILE)
        sites = {}
        for name, entry in parsed.sites.items():
            _check_architecture(name, entry)
            file = member(folder, entry.file)
            check_header(file, entry)
            # What is not read now, and was hashed before, need not be read again.
            check_hash(file, entry.sha256, anew=weights)
            sites[name] = SiteSAE(entry, read_weights(file, entry) if weights else None)
        return cls._of(parsed, catalogue, sites, raw)

    @classmethod
    def build(
        cls,
        fingerprint: ModelFingerprint,
        sites: Mapping[str, SAEWeights],
        catalogue: Catalogue,
        activation: Mapping[str, Mapping[str, float | None]] | None = None,
        together: Mapping[int, Mapping[str, float]] | None = None,
    ) -> Bundle:
        """Return a bundle of trained SAEs, checked as if it had been loaded.

        Raises: BundleCorruptError, UnsupportedSAEError
        """
        measured = activation or {}
        entries = {
            name: _site_entry(name, sae, measured.get(name, {}))
            for name, sae in sorted(sites.items())
        }
        described = BundleFile.model_construct(
            fingerprint=fingerprint,
            sites=entries,
            concepts={item.name: ConceptFile.of(item) for item in catalogue.values()},
            together={
                str(count): dict(told) for count, told in (together or {}).items()
            },
        )
        data = described.model_dump(mode="json")
        raw = (json.dumps(data, indent=1, sort_keys=True) + "\n").encode("ascii")
        parsed, checked = parse(raw, Path(BUNDLE_FILE))
        saes = {name: SiteSAE(parsed.sites[name], sae) for name, sae in sites.items()}
        return cls._of(parsed, checked, saes, raw)

    def with_figures(
        self, catalogue: Catalogue, together: Mapping[int, Mapping[str, float]]
    ) -> Bundle:
        """Return the bundle with other figures of its concepts, and of several at once.

        It edits as before; its digest is another, and its version the newest. Raises:
        BundleError if the bundle was loaded without weights
        """
        return self._again(self.fingerprint, catalogue, together)

    def stamped(self, model_dir: str | Path) -> Bundle:
        """Return the bundle with all that its model is told by, config.json too.

        For bundles that were made before version 3; it is as ``with_figures`` says.

        Raises: BundleMismatchError, ConfigError, BundleError
        """
        self.check_model(model_dir)
        return self._again(fingerprint_model(model_dir), self.catalogue, self.together)

    def _again(
        self,
        fingerprint: ModelFingerprint,
        catalogue: Catalogue,
        together: Mapping[int, Mapping[str, float]],
    ) -> Bundle:
        before, after = (
            {name: one.edits for name, one in each.items()}
            for each in (self.catalogue, catalogue)
        )
        assert before == after
        return self.build(
            fingerprint,
            {name: site.weights for name, site in self.sites.items()},
            catalogue,
            {name: site.entry.activation for name, site in self.sites.items()},
            together,
        )

    @classmethod
    def _of(
        cls,
        parsed: BundleFile,
        catalogue: Catalogue,
        sites: Mapping[str, SiteSAE],
        raw: bytes,
    ) -> Bundle:
        together = {int(count): told for count, told in parsed.together.items()}
        digest = hashlib.sha256(raw).hexdigest()
        return cls(parsed.fingerprint, sites, catalogue, digest, together, raw)

    def save(self, path: str | Path) -> None:
        """Write the bundle; a bundle already there is replaced whole or not at all.

        Raises: BundleError, OSError
        """
        from vllm_sauce.sae.tensors_file import write_tensors

        with replaced_folder(Path(path)) as folder:
            for site in self.sites.values():
                file = folder / site.entry.file
                write_tensors(_contiguous(site.weights), file)
                check_hash(file, site.entry.sha256)
            (folder / BUNDLE_FILE).write_bytes(self._raw)

    def check_model(
        self, model_dir: str | Path, *, allow_quantized: bool = False
    ) -> None:
        """Refuse a model folder the bundle does not belong to.

        ``allow_quantized``: one of the same sizes whose weights are quantised will do.

        Raises: BundleMismatchError, ConfigError
        """
        quantized = is_quantized(model_dir)
        hashed = not (quantized and allow_quantized)
        mine = self.fingerprint
        if not hashed:
            mine = mine.model_copy(update={"weights_sha256": None})
        theirs = fingerprint_model(model_dir, weights=hashed)
        if differences := mine.differences(theirs):
            raise BundleMismatchError(
                f"the bundle belongs to another model than {model_dir}: "
                f"{'; '.join(differences)}; serve the model it was made for"
                + ", or allow a quantised copy (--sauce-allow-quantized)"
                * quantized
            )


def _check_architecture(name: str, entry: SiteFile) -> None:
    if entry.architecture not in _ARCHITECTURES:
        raise UnsupportedSAEError(
            f"site {name!r}: SAE architecture must be one of "
            f"{', '.join(_ARCHITECTURES)}, got {entry.architecture!r}"
        )
    if (entry.architecture == "topk") != (entry.k is not None):
        raise UnsupportedSAEError(
            f"site {name!r}: an SAE of kind topk needs k, and k is for topk alone; got "
            f"k={entry.k} for {entry.architecture!r}"
        )


def _site_entry(
    name: str, sae: SAEWeights, activation: Mapping[str, float | None]
) -> SiteFile:
    from vllm_sauce.sae.tensors_file import file_parts

    digest = hashlib.sha256()
    for part in file_parts(_contiguous(sae)):
        digest.update(part)
    # Unchecked here: parse checks the whole text, as it will when it is read.
    return SiteFile.model_construct(
        file=f"sae.{name}.safetensors",
        sha256=digest.hexdigest(),
        architecture=sae.architecture,
        d_model=sae.d_model,
        d_sae=sae.d_sae,
        apply_b_dec_to_input=sae.apply_b_dec_to_input,
        k=sae.k,
        normalize_activations=sae.normalize_activations,
        activation={
            key: None if value is None else float(value)
            for key, value in activation.items()
        },
        rows=[RowFile.model_construct(**asdict(row)) for row in sae.rows],
    )


def _contiguous(sae: SAEWeights) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in sae.tensors().items()
    }
