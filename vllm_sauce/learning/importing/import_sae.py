# SPDX-License-Identifier: Apache-2.0
"""A public SAE, checked against the model it is for, as a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from safetensors import SafetensorError
from torch import Tensor

from vllm_sauce.bundle import (
    Bundle,
    check_replaceable,
    fingerprint_model,
    read_concepts,
)
from vllm_sauce.concepts import Catalogue, is_vision
from vllm_sauce.errors import BundleError, ConfigError
from vllm_sauce.learning.importing import sources
from vllm_sauce.learning.importing.readings import (
    Reconstruction,
    check_reconstruction,
    check_width,
)
from vllm_sauce.learning.importing.settings import ImportRequest
from vllm_sauce.learning.importing.site_samples import (
    MOST_TOKENS,
    read_activations,
    read_pictures,
    read_texts,
    sample_activations,
)
from vllm_sauce.sae.formats import ForeignSAE, LoadOptions, load_foreign


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedSAE(Reconstruction):
    """What was written, and what was measured."""

    foreign: ForeignSAE

    num_tokens: int
    """Activations it was measured on."""

    num_concepts: int
    """Concepts in the bundle's catalogue."""

    def as_table(self) -> Table:
        """Return the report for a terminal."""
        sae = self.foreign.weights
        kind = sae.architecture if sae.k is None else f"{sae.architecture}, k {sae.k}"
        rows = {
            "format": self.foreign.format,
            "architecture": kind,
            "d_model": str(sae.d_model),
            "d_sae": str(sae.d_sae),
            "b_dec subtracted": "yes" if sae.apply_b_dec_to_input else "no",
            "input normalised": sae.normalize_activations,
            "folded": "\n".join(self.foreign.folded) or "nothing",
            "explained variance": f"{self.quality.explained_variance:.3f}",
            "explains as well": "\n".join(
                f"{layer}: {explained:.3f}; make sure that it is not that layer's"
                for layer, explained in self.alike.items()
            )
            or "no other layer",
            "L0": f"{self.quality.l0:.1f}",
            "measured on": f"{self.num_tokens} activations",
            "concepts": str(self.num_concepts or "none: no server starts on it yet"),
        }
        table = Table(show_header=False)
        for row in rows.items():
            table.add_row(*row)
        return table


def import_sae(
    request: ImportRequest, report: Callable[[str], None] = lambda step: None
) -> ImportedSAE:
    """Write a bundle with one public SAE if it reconstructs the model's activations.

    ``report`` is told each step. Nothing is written unless all of it ends well.

    Raises: SauceError of the kind that says what is wrong
    """
    if request.out.exists() and not request.overwrite:
        raise ConfigError(f"{request.out} is there already; --overwrite replaces it")
    check_replaceable(request.out)
    catalogue = read_concepts(request.concepts) if request.concepts else Catalogue()
    foreign = _foreign(request, report)
    report("finding the model")
    model_dir = sources.model_path(request.model)
    fingerprint = fingerprint_model(model_dir)
    if not is_vision(request.site):
        check_width(foreign.weights, request.site, fingerprint.text.hidden_size)
    report("sampling activations")
    activations = _activations(request, model_dir)
    report("measuring the reconstruction")
    found = check_reconstruction(
        foreign.weights,
        request.site,
        activations,
        min_explained_variance=request.min_explained_variance,
        compare=request.compare,
    )
    report("writing the bundle")
    bundle = Bundle.build(
        fingerprint,
        {request.site: foreign.weights},
        catalogue,
        {request.site: found.quality.to_json()},
    )
    try:
        bundle.save(request.out)
    except (OSError, SafetensorError) as error:
        raise BundleError(
            f"cannot write {request.out}: {error}; nothing is there that was not there "
            "before"
        ) from error
    return ImportedSAE(
        foreign=foreign,
        quality=found.quality,
        alike=found.alike,
        num_tokens=min(len(activations[request.site]), MOST_TOKENS),
        num_concepts=len(catalogue),
    )


def _foreign(request: ImportRequest, report: Callable[[str], None]) -> ForeignSAE:
    report("finding the SAE")
    path = sources.sae_path(request.source, request.subfolder)
    report("reading the SAE")
    options = LoadOptions(
        k=request.k,
        dict_class=request.dict_class,
        name=request.source,
        factor_folded=request.factor_folded,
    )
    return load_foreign(path, format=request.format, options=options)


def _activations(request: ImportRequest, model_dir: Path) -> dict[str, Tensor]:
    if request.activations:
        return read_activations(request.activations, request.site)
    return sample_activations(
        model_dir,
        request.site,
        read_texts(request.texts) if request.texts else None,
        read_pictures(request.pictures) if request.pictures else None,
    )
