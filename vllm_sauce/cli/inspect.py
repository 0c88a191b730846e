# SPDX-License-Identifier: Apache-2.0
"""``sauce inspect``: a report on a bundle that a person can look at."""

from __future__ import annotations

import sys

from vllm_sauce.inspection.settings import InspectRequest


def inspect(request: InspectRequest) -> None:
    """Show each concept's latents, where they fire, and what forgetting it does."""
    from vllm_sauce.cli.failures import check_place
    from vllm_sauce.inspection.inspect import write_report

    check_place(request.out)
    size = write_report(request)
    sys.stdout.write(f"{request.out}: {size / 1e6:.1f} MB\n")
