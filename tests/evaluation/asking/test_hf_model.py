# SPDX-License-Identifier: Apache-2.0
"""What transformers answers under an edit of some kinds of tokens, as vLLM does."""

from dataclasses import replace

import pytest

from tests.engines import starts_engine
from tests.learning.selection.test_causal import ENGINE, SOME, TINY, about
from tests.plugin.support import MODEL
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import IMAGE, OF_TEXT, SPARING, SiteEdit
from vllm_sauce.evaluation.asking.asker import Ask
from vllm_sauce.evaluation.asking.hf_model import ModelAsker
from vllm_sauce.evaluation.asking.vllm_engine import EngineAsker
from vllm_sauce.models.loaded_model import LoadedModel

KINDS = {"all": SPARING, "text": OF_TEXT, "pictures": (IMAGE,)}


@pytest.fixture(scope="module")
@starts_engine
def engine():
    sites = Bundle.load(TINY / "latents").sites
    wide = SiteEdit.uniform(range(0, 2048, 4), gamma=-1.0)
    candidates = {
        name: {"decoder.1": replace(wide, tokens=tokens)}
        for name, tokens in KINDS.items()
    }
    saes = {"decoder.1": sites["decoder.1"].weights}
    with EngineAsker.of_candidates(
        MODEL, saes, candidates, engine_args=ENGINE
    ) as engine:
        yield engine


def test_the_same_kinds_of_tokens_are_edited(engine):
    """Two pictures, each unedited and in three ways: eight different answers."""
    served = Bundle.load(engine.bundle)
    saes = {site: entry.weights for site, entry in served.sites.items()}
    asker = ModelAsker(LoadedModel.load(MODEL, "cpu"), served.catalogue, saes)
    asks = [
        Ask(question=about(seed), forget=forget, wanted=SOME)
        for seed in (1, 2)
        for forget in ((), *((kind,) for kind in KINDS))
    ]
    firsts = set()
    for ask, one, other in zip(asks, engine.ask(asks), asker.ask(asks), strict=True):
        assert one.said == other.said
        for tokens in SOME:
            assert one.logprobs[tokens] == pytest.approx(
                other.logprobs[tokens], abs=3e-4
            ), ask
        firsts.add(round(one.logprobs[50,], 3))
    assert len(firsts) == len(asks)
