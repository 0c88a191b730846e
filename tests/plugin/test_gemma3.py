# SPDX-License-Identifier: Apache-2.0
"""Gemma 3's decoder layers: the edit and the tap against transformers."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import vllm_sauce
from tests.engines import starts_engine
from tests.plugin.conftest import RUNNER, engine
from tests.plugin.random_gemma3 import write_gemma3_bundle, write_random_gemma3
from tests.plugin.support import LONG, picture, reply_of
from vllm_sauce.bundle import Bundle
from vllm_sauce.models.site_hooks import site_hook
from vllm_sauce.sae import reconstruct

SITE = "decoder.1"
PROMPTS = ("is there a dog ?", LONG[:200])
TOKENS = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory, model_dir):
    folder = tmp_path_factory.mktemp("gemma3")
    model = write_random_gemma3(folder / "model", model_dir)
    return model, write_gemma3_bundle(folder / "bundle", model)


@pytest.fixture(scope="module")
@starts_engine
def llm(folders) -> Iterator[Any]:
    model, bundle = folders
    yield engine(
        model, {"bundle": str(bundle)}, max_model_len=256, enforce_eager=RUNNER == "v2"
    )


@pytest.fixture(scope="module")
def oracle(folders):
    from transformers import AutoProcessor, Gemma3ForConditionalGeneration

    model = Gemma3ForConditionalGeneration.from_pretrained(
        folders[0], dtype=torch.float32
    )
    return model.eval(), AutoProcessor.from_pretrained(folders[0])


def asked(llm, prompts, forget=()):
    from vllm import SamplingParams

    extra = vllm_sauce.forget(*forget) if forget else None
    params = SamplingParams(
        temperature=0, max_tokens=TOKENS, logprobs=5, ignore_eos=True, extra_args=extra
    )
    return [reply_of(o) for o in llm.generate(prompts, params, use_tqdm=False)]


@torch.inference_mode()
def expected(oracle, bundle_dir, prompt, forget):
    """Greedy answers of transformers without a cache, the SAE's full maths in place."""
    model, processor = oracle
    bundle = Bundle.load(bundle_dir)
    edit = bundle.catalogue.concept("read").edits[SITE]
    sae = bundle.sites[SITE].weights

    def change(x):
        # The first token is the sink, which edits spare.
        edited = [x[:, :1], reconstruct(sae, x[:, 1:], edit)]
        return torch.cat(edited, dim=1) if forget else x

    ids = processor(text=prompt, return_tensors="pt")["input_ids"]
    steps = []
    with site_hook(model, SITE, change):
        for _ in range(TOKENS):
            logits = model(input_ids=ids, use_cache=False).logits[0, -1]
            steps.append(torch.log_softmax(logits, -1))
            ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
    return ids[0, -TOKENS:].tolist(), steps


def test_text_is_edited_as_the_saes_maths_says(llm, oracle, folders):
    prompts = [{"prompt": words} for words in PROMPTS]
    for forget in ((), ("read",)):
        for words, got in zip(PROMPTS, asked(llm, prompts, forget), strict=True):
            tokens, steps = expected(oracle, folders[1], words, forget)
            assert list(got.tokens) == tokens
            for step, entries in zip(steps, got.logprobs, strict=True):
                for token, value in entries:
                    assert abs(float(step[token]) - value) < 1e-3


def test_the_edit_changes_answers_to_pictures_and_text(llm):
    shown = {
        "prompt": "<start_of_image> what is it ?",
        "multi_modal_data": {"image": picture(1)},
    }
    prompts = [shown, *({"prompt": words} for words in PROMPTS)]
    plain, edited = asked(llm, prompts), asked(llm, prompts, ("read",))
    again = asked(llm, prompts)
    for before, after, later in zip(plain, edited, again, strict=True):
        assert not after.close(before, 1e-2)
        assert later.close(before)
