# SPDX-License-Identifier: Apache-2.0
"""``sauce select``: which latents carry a concept."""

from __future__ import annotations

import sys

from vllm_sauce.learning.selection.settings import SelectRequest


def select(request: SelectRequest) -> None:
    """Rank every concept's latents by one score and keep the best with all scores."""
    from vllm_sauce.cli.bars import progress_bar
    from vllm_sauce.cli.failures import check_place
    from vllm_sauce.learning.selection.select import select

    check_place(request.out)
    with progress_bar("latents") as progress:
        selection = select(request, progress)
    selection.write(request.out)
    count = len(selection.concepts)
    sys.stdout.write(
        f"{count} concepts, up to {request.k} latents each: {request.out}\n"
    )
