# SPDX-License-Identifier: Apache-2.0
"""What comes beside words is edited as it must be, whatever its sender calls it.

Over HTTP with ``/inference/v1/generate``, offline as here: a request that brings its
data itself names the data's kind itself, and vLLM believes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engines import starts_engine
from tests.plugin.conftest import engine
from tests.plugin.random_bundle import write_decoder_bundle
from tests.plugin.support import LONG, Ask, Reply, cold, reply_of, run
from tests.soak.inputs import embeds_item
from vllm_sauce.concepts import SPARING, SiteEdit
from vllm_sauce.errors import InvalidRequestError
from vllm_sauce.plugin.frontend import admission
from vllm_sauce.plugin.sites.encoder_batches import (
    refuse_embeddings,
    refuse_other_kinds,
)

EDIT = SiteEdit.uniform(range(7, 40), gamma=-4.0, shift=-1.0, gate=0.05)
TOKENS = {"pictures": ("image",), "words": ("prompt", "generated"), "all": SPARING}


@pytest.fixture(scope="module")
@starts_engine
def llm(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine whose concepts edit pictures, words, and both."""
    edits = {name: replace(EDIT, tokens=tokens) for name, tokens in TOKENS.items()}
    path = tmp_path_factory.mktemp("kinds") / "b"
    write_decoder_bundle(path, model_dir, edits)
    yield engine(model_dir, {"bundle": str(path)}, mm_processor_cache_gb=0)


def named(llm: Any, ask: Ask, kind: str, embeds: torch.Tensor | None = None) -> Any:
    """Return a request's input under another kind's name, or as embeddings."""
    from vllm.inputs import mm_input
    from vllm.multimodal.inputs import MultiModalKwargsItems

    (made,) = llm._preprocess_cmpl([ask.prompt()])
    items = list(made["mm_kwargs"]["image"])
    if embeds is not None:
        items = [embeds_item(embeds)]
    return mm_input(
        prompt_token_ids=list(made["prompt_token_ids"]),
        mm_kwargs=MultiModalKwargsItems({kind: items}),
        mm_hashes={kind: list(made["mm_hashes"]["image"])},
        mm_placeholders={kind: made["mm_placeholders"]["image"]},
    )


def answered(llm: Any, prompt: Any, ask: Ask) -> Reply:
    """Send one input that was made by hand."""
    llm.llm_engine.add_request("by-hand", prompt, ask.params())
    found = []
    while llm.llm_engine.has_unfinished_requests():
        found += [out for out in llm.llm_engine.step() if out.finished]
    (output,) = found
    return reply_of(output)


@pytest.mark.parametrize("kind", ["audio", "picture", "video", "prompt_embeds"])
@pytest.mark.parametrize("name", TOKENS)
def test_a_picture_under_another_name_is_refused(
    llm: Any, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever asks next reads nothing of it from the cache."""
    ask = Ask(1, LONG, (name,))
    cold(llm)
    (want,) = run(llm, [ask])
    cold(llm)
    for where in (None, admission):  # the engine core refuses it by itself, too
        if where is not None:
            monkeypatch.setattr(where, "refuse_other_kinds", lambda *told: None)
        with pytest.raises(InvalidRequestError, match=f"'{kind}', which the served"):
            llm.llm_engine.add_request("bad", named(llm, ask, kind), ask.params())
    assert not llm.llm_engine.has_unfinished_requests()
    (found,) = run(llm, [ask])
    assert found.same(want)


def test_its_own_name_is_answered_as_ever(llm: Any) -> None:
    ask = Ask(1, LONG, ("pictures",))
    cold(llm)
    (want,) = run(llm, [ask])
    cold(llm)
    assert answered(llm, named(llm, ask, "image"), ask).close(want)


def test_a_picture_of_another_name_is_edited_as_one(
    llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were it let in: kinds of tokens are told by where pictures lie."""
    ask = Ask(1, LONG, ("pictures",))
    cold(llm)
    (want,) = run(llm, [ask])
    cold(llm)
    engine = llm.llm_engine
    for part in (engine.input_processor, engine.engine_core.engine_core):
        monkeypatch.setattr(part, "_sauce_modalities", {"audio"})
    assert answered(llm, named(llm, ask, "audio"), ask).close(want)


def test_words_do_not_come_as_a_picture(
    llm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its embeddings: neither in a request, nor left by a plain one of its name."""
    ask = Ask(1, LONG, ("words",))
    plain, both = replace(ask, forget=()), replace(ask, forget=("all",))
    (made,) = llm._preprocess_cmpl([ask.prompt()])
    (place,) = made["mm_placeholders"]["image"]
    width = llm.model_config.hf_config.text_config.hidden_size
    rows = torch.randn(place.length, width, generator=torch.Generator().manual_seed(1))
    cold(llm)
    (want,) = run(llm, [ask])
    cold(llm)
    for where in (None, admission):  # the engine core refuses it by itself, too
        if where is not None:
            monkeypatch.setattr(where, "refuse_embeddings", lambda features: None)
        words = named(llm, ask, "image", rows)
        with pytest.raises(InvalidRequestError, match="nothing may come as embeddings"):
            llm.llm_engine.add_request("bad", words, ask.params())
    # Where all are edited alike it is the model's own business.
    assert answered(llm, named(llm, both, "image", rows), both).tokens
    assert answered(llm, named(llm, plain, "image", rows), plain).tokens
    assert run(llm, [ask])[0].same(want)


def test_what_a_text_model_takes() -> None:
    """Nothing: vLLM would drop the data and read its tokens as words."""
    feature = SimpleNamespace(modality="image", data=None)
    with pytest.raises(InvalidRequestError, match="it takes text alone"):
        refuse_other_kinds([feature], ())
    refuse_other_kinds([feature], ("image", "video"))


@pytest.mark.parametrize("keys", [[], ["pixel_values"], ["image_sizes"]])
def test_what_the_tower_encodes_passes(keys: list[str]) -> None:
    refuse_embeddings([SimpleNamespace(modality="image", data=dict.fromkeys(keys))])
