# SPDX-License-Identifier: Apache-2.0
"""``sauce import``: a public SAE becomes a bundle, if it fits the model."""

from __future__ import annotations

import sys

from vllm_sauce.learning.importing.settings import ImportRequest


def import_sae(request: ImportRequest) -> None:
    """Turn a public SAE into a bundle, checked on activations of the actual model."""
    from rich.console import Console

    from vllm_sauce.cli.bars import spinner
    from vllm_sauce.learning.importing.import_sae import import_sae

    with spinner() as told:
        imported = import_sae(request, told)
    Console().print(imported.as_table())
    sys.stdout.write(f"bundle: {request.out}\n")
