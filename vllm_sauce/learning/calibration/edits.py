# SPDX-License-Identifier: Apache-2.0
"""What a setting does to one site's latents: which, how much, above which gate."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.grid import FILE
from vllm_sauce.learning.calibration.setting import SiteSetting
from vllm_sauce.learning.selection.selection_file import (
    RankedLatent,
    SelectedConcept,
    level_name,
    ranks_row,
)

GATE_MARGIN = 0.01
"""How far above the level of a share a gate lies, relative to it.

Tokens before the picture are the same in every prompt, and levels fall on what they
have: at the level itself rounding, and so the rest of the batch, would decide.
"""


def ranked(found: SelectedConcept, ranking: str) -> list[RankedLatent]:
    """Return the latents that a ranking chooses, best first."""
    if ranking == FILE:
        return list(found.latents)
    scored = [(one.scores.get(ranking), one) for one in (*found.latents, *found.rows)]
    chosen = [(score, one) for score, one in scored if score is not None]
    return [one for _, one in sorted(chosen, key=lambda pair: -pair[0])]


def edit_of(latents: Sequence[RankedLatent], setting: SiteSetting) -> SiteEdit:
    """Return the edit of some latents with a setting's action and gate.

    Raises: ConfigError if the selection lacks the gate's level
    """
    action, is_row = setting.action, ranks_row(setting.ranking)
    gamma = 0.0 if action.clamps else action.amount
    return SiteEdit(
        latents=tuple(one.latent for one in latents),
        gamma=(gamma,) * len(latents),
        shift=tuple(
            -action.amount * one.max_acts[0] if action.clamps else 0.0
            for one in latents
        ),
        gate=tuple(
            # A row's scale is its own: 0 without the concept, 1 with it.
            setting.gate if is_row else _gate(one, setting.gate)
            for one in latents
        ),
    )


def _gate(latent: RankedLatent, share: float) -> float:
    """Return the activation to exceed. Raises: ConfigError"""
    if share == 0.0:
        return 0.0
    quiet = latent.quiet.get(level_name(share))
    level = latent.max_acts[1] if share == 1.0 else quiet
    if level is None:
        raise ConfigError(
            f"the selection has no level {share:g} of latent {latent.latent}; run "
            "sauce select again, or calibrate with the gates 0 and 1 alone"
        )
    return (1 + GATE_MARGIN) * max(level, 0.0)
