# SPDX-License-Identifier: Apache-2.0
"""``sauce inspect``'s steps: read what is shown, look, write the page."""

from __future__ import annotations

from vllm_sauce.bundle import Bundle, hub
from vllm_sauce.data.concepts_yaml import SPLITS, ConceptFile
from vllm_sauce.data.labelled_pictures import read_labelled
from vllm_sauce.data.samples import Sample
from vllm_sauce.errors import ConfigError
from vllm_sauce.inspection.inspection import Watch, inspect_bundle
from vllm_sauce.inspection.page import write_page
from vllm_sauce.inspection.questions import Wording
from vllm_sauce.inspection.settings import InspectRequest
from vllm_sauce.models.loaded_model import LoadedModel


def _read_shown(request: InspectRequest) -> tuple[list[Sample], Wording]:
    """Return what the model is shown, and how it is asked about it.

    Raises: ConfigError, ActivationsError
    """
    concepts, pictures, split = request.concepts, request.pictures, request.split
    if (concepts is None) == (pictures is None):
        raise ConfigError("give either --concepts or --pictures")
    if concepts is not None:
        if request.question is not None or request.naming:
            raise ConfigError(f"write the questions into {concepts}, under questions:")
        file = ConceptFile.read(concepts)
        if split is not None and split not in SPLITS:
            raise ConfigError(f"a split is one of {', '.join(SPLITS)}, got {split!r}")
        # One sample an example: looked at once, whatever is asked about it.
        samples = [
            example.samples()[0]
            for example in file.examples
            if split in (None, example.split)
        ]
        return samples, Wording.of_file(file)
    if split is not None:
        raise ConfigError("a split needs --concepts; a folder of pictures has none")
    assert pictures is not None
    wording = Wording.of_options(request.question, request.naming)
    return list(read_labelled(pictures)), wording


def write_report(
    request: InspectRequest, watch: Watch = lambda stage, done, total: None
) -> int:
    """Look at a bundle and write the page; returns its size in bytes.

    Raises: SauceError
    """
    samples, wording = _read_shown(request)
    bundle = Bundle.load(hub.bundle_folder(request.bundle))
    bundle.check_model(request.model)
    # Before the long part: a wrong name or a folder that is not there costs nothing.
    for name in request.names:
        bundle.catalogue.concept(name)
    inspection = inspect_bundle(
        bundle,
        LoadedModel.load(request.model),
        samples,
        request.names,
        request.settings,
        wording=wording,
        bundle_name=request.bundle,
        model_name=str(request.model),
        watch=watch,
    )
    return write_page(inspection, request.out)
