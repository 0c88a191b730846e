# SPDX-License-Identifier: Apache-2.0
"""A selection made up for tests."""

from vllm_sauce.learning.selection.selection_file import (
    QUIET_LEVELS,
    RankedLatent,
    SelectedConcept,
    level_name,
)


def selected(latents, crisp=True):
    """Latents ranked by the file; "rate" ranks them the other way round."""
    ranked = [
        RankedLatent(
            latent=latent,
            scores={
                "share": -float(i),
                "rate": float(i),
                "crisp": 1.0 if crisp else None,
            },
            mean_acts=(1.0, 0.1),
            firing_rate=(0.5, 0.1),
            max_acts=(4.0 + latent, 2.0),
            quiet={level_name(share): share + latent for share in QUIET_LEVELS},
        )
        for i, latent in enumerate(latents)
    ]
    return SelectedConcept(domain="d", num_samples=(9, 9), latents=ranked)
