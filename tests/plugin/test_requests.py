# SPDX-License-Identifier: Apache-2.0
"""What else a request may ask for, under a mask: the edited model answers that, too."""

from __future__ import annotations

from typing import Any

import pytest
from packaging.version import Version

from tests.plugin.conftest import RUNNER
from tests.plugin.support import LONG, Ask, cold, reply_of, run
from vllm_sauce.plugin.compat import vllm_version

MASKS: tuple[tuple[str, ...], ...] = ((), ("seen",), ("read",), ("both",))
TOLERANCE = 1e-3


def outputs_of(llm: Any, asks: list[Ask], **sampling: Any) -> list[Any]:
    """Send requests as one batch, with what they ask for beside."""
    params = [ask.params() for ask in asks]
    for one in params:
        for name, value in sampling.items():
            setattr(one, name, value)
    return list(llm.generate([ask.prompt() for ask in asks], params, use_tqdm=False))


def likeliest(step: Any) -> dict[int, float]:
    return {token: entry.logprob for token, entry in step.items()}


def agree(one: dict[int, float], other: dict[int, float]) -> bool:
    """Say whether two lists of likeliest tokens are of one distribution."""
    both = one.keys() & other.keys()
    assert len(both) >= 3, (one, other)
    return all(abs(one[token] - other[token]) < TOLERANCE for token in both)


@pytest.fixture(scope="module")
def asks() -> list[Ask]:
    return [Ask(4, LONG, mask, max_tokens=3) for mask in MASKS]


@pytest.mark.feature("n > 1")
def test_several_answers_are_all_of_the_edited_model(
    sauced: Any, reference: Any, asks: list[Ask]
) -> None:
    """What is drawn differs from answer to answer, what it is drawn from does not."""
    cold(sauced)
    found = outputs_of(sauced, asks, n=3, temperature=1.0, seed=7)
    for ask, output in zip(asks, found, strict=True):
        want = dict(reference.reply(ask).logprobs[0])
        assert len(output.outputs) == 3
        for answer in output.outputs:
            assert agree(likeliest(answer.logprobs[0]), want), ask


@pytest.mark.feature("prompt_logprobs")
def test_a_prompts_own_probabilities_are_of_the_edited_model(sauced: Any) -> None:
    """Each is what a request has whose prompt ends there."""
    asks = [Ask(None, LONG, mask) for mask in ((), ("read",))]
    cold(sauced)
    found = outputs_of(sauced, asks, prompt_logprobs=5, max_tokens=1)
    ids = found[0].prompt_token_ids
    for ask, output in zip(asks, found, strict=True):
        for end in (2, len(ids) // 2, len(ids) - 1):
            (short,) = sauced.generate(
                {"prompt_token_ids": ids[:end]}, ask.params(), use_tqdm=False
            )
            want = likeliest(short.outputs[0].logprobs[0])
            assert agree(likeliest(output.prompt_logprobs[end]), want), (ask, end)
    plain, masked = (likeliest(output.prompt_logprobs[-1]) for output in found)
    assert plain.keys() != masked.keys() or not agree(plain, masked)


@pytest.mark.feature("structured output")
def test_a_choice_is_made_by_the_edited_model(sauced: Any) -> None:
    """Of two words that are allowed, as much likelier as it finds each by itself."""
    if RUNNER == "v2" and Version(vllm_version()) < Version("0.28"):
        pytest.skip("vLLM 0.27's V2 pins memory for a grammar, which a CPU has not")
    from vllm.sampling_params import StructuredOutputsParams

    words = ("yes", "no")
    tokens = {
        word: sauced.get_tokenizer().encode(word, add_special_tokens=False)[0]
        for word in words
    }
    question = "is there a dog in the picture ?"
    asks = [
        Ask(image, question, mask, max_tokens=3) for image in (1, 2) for mask in MASKS
    ]
    cold(sauced)
    free = outputs_of(sauced, asks, logprobs=20)
    choice = StructuredOutputsParams(choice=list(words))
    bound = outputs_of(
        sauced, asks, structured_outputs=choice, ignore_eos=False, logprobs=20
    )
    compared = 0
    for ask, one, other in zip(asks, free, bound, strict=True):
        before, after = (likeliest(o.outputs[0].logprobs[0]) for o in (one, other))
        yes, no = (tokens[word] for word in words)
        assert other.outputs[0].text == words[after[no] > after[yes]], ask
        if yes in before and no in before:
            compared += 1
            told = before[yes] - before[no]
            assert abs(after[yes] - after[no] - told) < TOLERANCE, ask
    assert compared >= len(asks) // 2


@pytest.mark.feature("stop strings and tokens")
def test_an_answer_ends_where_it_is_told_to(sauced: Any, asks: list[Ask]) -> None:
    """At its second word; what comes before is as without."""
    cold(sauced)
    for ask, whole in zip(asks, outputs_of(sauced, asks), strict=True):
        words = whole.outputs[0].text.split()
        if len(set(words)) < 2:
            continue
        stop = next(word for word in words if word != words[0])
        (cut,) = outputs_of(sauced, [ask], stop=[stop])
        assert cut.outputs[0].stop_reason == stop
        assert whole.outputs[0].text.startswith(cut.outputs[0].text)


@pytest.mark.feature("priorities")
def test_who_comes_first_is_edited_alike(tight: Any, reference: Any) -> None:
    """Eight requests, the last ones first: each has its own mask."""
    asks = [Ask(n, LONG, mask) for n in (1, 2) for mask in MASKS]
    params = [ask.params() for ask in asks]
    cold(tight)
    outputs = tight.generate(
        [ask.prompt() for ask in asks], params, priority=list(range(8, 0, -1))
    )
    times = [output.metrics.first_token_ts for output in outputs]
    assert max(times[4:]) < min(times[:4])
    for ask, output in zip(asks, outputs, strict=True):
        assert reply_of(output).close(reference.reply(ask), 1e-3), ask


@pytest.mark.feature("KV events")
def test_blocks_are_told_of_under_their_masks_names(
    tight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever routes by cached blocks sees that masks share none."""
    told: list[Any] = []
    scheduler = tight.llm_engine.engine_core.engine_core.scheduler
    monkeypatch.setattr(scheduler.kv_event_publisher, "publish", told.append)
    stored = []
    cold(tight)
    for mask in (*MASKS, ("read",)):
        told.clear()
        run(tight, [Ask(None, LONG, mask)])
        events = [event for batch in told for event in batch.events]
        stored.append(
            {key for one in events for key in getattr(one, "block_hashes", ())}
        )
    plain, seen, read, both, again = stored
    # Without a picture, what edits pictures alone is plain.
    assert plain and not seen and not again
    assert read and both and not plain & read and not read & both
