# SPDX-License-Identifier: Apache-2.0
"""Print what sauce-tiny's SAEs explain when they are read rightly and wrongly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vllm_sauce.bundle import Bundle
from vllm_sauce.learning.importing.readings import readings
from vllm_sauce.learning.importing.site_samples import read_pictures, sample_activations
from vllm_sauce.sae import SAEWeights
from vllm_sauce.sae.quality import sae_quality

HERE = Path(__file__).parent
QUESTIONS = ("what is in the picture?", "what colour is it?", "is there a dog?")


def wrongly(sae: SAEWeights) -> dict[str, SAEWeights]:
    """Return the SAE as it would be after the usual mistakes."""
    return {
        "b_dec not subtracted": replace(sae, apply_b_dec_to_input=False),
        "b_dec negated": replace(sae, b_dec=-sae.b_dec),
        "encoder = transposed decoder": replace(sae, W_enc=sae.W_dec.T),
        "decoder = transposed encoder": replace(sae, W_dec=sae.W_enc.T),
        "rows of the decoder reversed": replace(sae, W_dec=sae.W_dec.flip(0)),
    }


def main() -> None:
    """Print one line a site and reading."""
    bundle = Bundle.load(HERE / "latents")
    pictures = read_pictures(HERE / "pictures")
    for site, questions in (("vision", None), ("decoder.1", QUESTIONS)):
        sae = bundle.sites[site].weights
        seen = sample_activations(HERE / "model", site, questions, pictures)
        for words, other in {"as it is": sae, **wrongly(sae)}.items():
            explained = sae_quality(other, seen[site]).explained_variance
            print(f"{site:10} {words:45} {explained:8.2f}")
        for reading in readings(sae, site, seen):
            explained = sae_quality(reading.sae, reading.activations).explained_variance
            print(f"{site:10} {reading.words:45} {explained:8.2f}")
        defaults = sample_activations(HERE / "model", site)[site]
        explained = sae_quality(sae, defaults).explained_variance
        print(f"{site:10} {'on the default inputs':45} {explained:8.2f}")


if __name__ == "__main__":
    main()
