# SPDX-License-Identifier: Apache-2.0
"""``sauce calibrate``: the best edit of every concept, and the bundle."""

from __future__ import annotations

import sys
from dataclasses import replace

from vllm_sauce.learning.calibration.config import CalibrateRequest
from vllm_sauce.scale.cluster import actors_wanted


def calibrate(request: CalibrateRequest) -> None:
    """Search latents, edit, gate and site of each concept; run again to go on."""
    from rich.console import Console

    from vllm_sauce.cli.bars import stages
    from vllm_sauce.cli.failures import only_shown
    from vllm_sauce.learning.calibration.report import table, write_frontiers
    from vllm_sauce.learning.calibration.run import calibrate_bundle

    request = replace(request, resources=actors_wanted(request.resources))
    with stages() as note:
        bundle = calibrate_bundle(request, note, note)
    Console().print(table(bundle.catalogue))
    sys.stdout.write(
        f"bundle: {request.out}; everything that was tried: {request.folder}\n"
    )
    with only_shown("the frontier of each concept"):
        write_frontiers(request.folder)
