# SPDX-License-Identifier: Apache-2.0
"""A real vLLM, offline: what a mask does, and to whom it does nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plugin.support import LONG, Ask, cold, reply_of, run, runner_of
from vllm_sauce.errors import (
    InvalidRequestError,
    InvalidStrengthError,
    RequestError,
    TooManyConceptsError,
    UnknownConceptError,
)

SITES = ("seen", "read", "both")
"""Concepts of the random bundle: at the vision site, at the decoder, at both."""

MASKS: tuple[tuple[str, ...], ...] = ((), *((name,) for name in SITES))
BLOCK = 32
"""Tokens of a block of the engines' caches."""
WHAT = "what is in the picture ?"


def test_without_a_mask_the_engine_is_the_plain_one(sauced: Any, plain: Any) -> None:
    """Installed but idle: tokens and log-probabilities are equal to the last bit."""
    asks = [Ask(i, WHAT) for i in range(4)] + [Ask(None, LONG)]
    cold(sauced)
    cold(plain)
    for mine, theirs in zip(run(sauced, asks), run(plain, asks), strict=True):
        assert mine.same(theirs)


@pytest.mark.parametrize("concept", SITES)
@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_the_edit_is_the_references(
    sauced: Any, reference: Any, concept: str, strength: float
) -> None:
    """A masked request answers as transformers does with the reference edit."""
    ask = Ask(3, LONG, (concept,), strength)
    cold(sauced)
    (masked,) = run(sauced, [ask])
    (unmasked,) = run(sauced, [Ask(3, LONG)])
    assert masked.close(reference.reply(ask), 1e-3)
    assert not masked.close(unmasked, 1e-2), "the edit did nothing"


def test_mixed_batch(sauced: Any, reference: Any) -> None:
    """Eight requests, eight masks, one batch: each answers as it would alone."""
    asks = [
        Ask(1, WHAT),
        Ask(1, WHAT, ("seen",)),
        Ask(1, WHAT, ("read",)),
        Ask(1, WHAT, ("both",)),
        Ask(2, WHAT, ("seen", "read"), 1.5),
        Ask(None, LONG, ("read",)),
        Ask(None, LONG),
        Ask(2, WHAT, ("seen",), 0.5),
    ]
    cold(sauced)
    for ask, mine in zip(asks, run(sauced, asks), strict=True):
        assert mine.close(reference.reply(ask), 1e-3), ask


def test_isolation(sauced: Any) -> None:
    """The same batch with the real and with a zeroed edit: other rows bit-equal."""
    asks = [
        Ask(1, WHAT),
        Ask(2, WHAT, ("both",)),
        Ask(None, LONG),
        Ask(3, WHAT, ("read",)),
    ]
    cold(sauced)
    real = run(sauced, asks)
    runtime = runner_of(sauced).model._sauce_action
    tables = [site.table for site in runtime.decoder.values()]
    tables.append(runtime.vision["vision"].table)
    kept = [table.W_dec_rows.clone() for table in tables]
    try:
        for table in tables:
            table.W_dec_rows.zero_()
        cold(sauced)
        zeroed = run(sauced, asks)
    finally:
        for table, rows in zip(tables, kept, strict=True):
            table.W_dec_rows.copy_(rows)
        cold(sauced)
    assert real[0].same(zeroed[0])
    assert real[2].same(zeroed[2])
    assert not real[1].same(zeroed[1])
    assert not real[3].same(zeroed[3])


@pytest.mark.feature("prefix caching")
@pytest.mark.parametrize("first", [(), ("seen",), ("read",), ("both",)])
@pytest.mark.parametrize("second", [(), ("seen",), ("read",), ("both",)])
def test_no_leak_through_the_caches(
    sauced: Any, first: tuple[str, ...], second: tuple[str, ...]
) -> None:
    """A warm engine answers as a cold one, whoever filled its caches before."""
    asks = Ask(5, LONG, first), Ask(5, LONG, second)
    cold(sauced)
    (expected,) = run(sauced, [asks[1]])
    cold(sauced)
    run(sauced, [asks[0]])
    (warm,) = run(sauced, [asks[1]])
    assert warm.close(expected), "a cache served what another mask computed"
    if first == second:
        assert warm.cached >= 32, "equal masks must share their blocks"


def test_what_stands_before_a_picture_is_shared(sauced: Any) -> None:
    """A mask of the vision site changes nothing of a system prompt before it."""
    from tests.plugin.support import picture

    prompt = {
        "prompt": f"USER: {LONG}<image>\n{WHAT} ASSISTANT:",
        "multi_modal_data": {"image": picture(6)},
    }
    masked = Ask(6, "", ("seen",)).params()
    cold(sauced)
    (expected,) = sauced.generate(prompt, masked, use_tqdm=False)
    ids = expected.prompt_token_ids
    before = ids.index(sauced.get_tokenizer().convert_tokens_to_ids("<image>"))
    whole = before - before % BLOCK
    assert whole >= 2 * BLOCK
    cold(sauced)
    cached = []
    for params in (Ask(6, "").params(), masked, masked):
        (answer,) = sauced.generate(prompt, params, use_tqdm=False)
        cached.append(answer.num_cached_tokens)
    assert cached == [0, whole, (len(ids) - 1) // BLOCK * BLOCK]
    assert reply_of(answer).close(reply_of(expected))


@pytest.mark.parametrize("second", [1.0, 2.0])
def test_strengths_do_not_share(sauced: Any, second: float) -> None:
    """The same concept at another strength is another mask."""
    cold(sauced)
    (expected,) = run(sauced, [Ask(5, LONG, ("both",), second)])
    cold(sauced)
    run(sauced, [Ask(5, LONG, ("both",), 3.0)])
    (warm,) = run(sauced, [Ask(5, LONG, ("both",), second)])
    assert warm.close(expected)
    assert warm.cached == 0 or second == 3.0


def test_image_cached_in_the_same_step(sauced: Any) -> None:
    """One picture, with and without a mask, encoded in one step: two encodings."""
    asks = [
        Ask(9, WHAT),
        Ask(9, WHAT, ("seen",)),
        Ask(9, WHAT),
        Ask(9, WHAT, ("seen",)),
    ]
    cold(sauced)
    replies = run(sauced, asks)
    assert replies[0].close(replies[2])
    assert replies[1].close(replies[3])
    assert not replies[0].close(replies[1], 1e-2)


def test_multi_turn(sauced: Any, reference: Any) -> None:
    """A conversation that grows keeps its mask and its cached blocks."""
    history = LONG
    cold(sauced)
    for turn in range(3):
        ask = Ask(4, history, ("both",))
        (reply,) = run(sauced, [ask])
        assert reply.close(reference.reply(ask), 1e-3)
        assert turn == 0 or reply.cached > 0
        (other,) = run(sauced, [Ask(4, history)])
        assert other.close(reference.reply(Ask(4, history)), 1e-3)
        history += " ASSISTANT: yes USER: is there a cat in the picture ?"


@pytest.mark.feature("chunked prefill")
def test_chunked_prefill(tight: Any, reference: Any) -> None:
    """Prompts longer than a step's budget: every chunk is edited, nobody else's is."""
    asks = [
        Ask(1, LONG, ("both",)),
        Ask(2, LONG),
        Ask(3, LONG, ("read",), 2.0),
        Ask(None, LONG, ("read",)),
        Ask(4, LONG, ("seen",)),
        Ask(None, LONG),
    ]
    cold(tight)
    for ask, mine in zip(asks, run(tight, asks), strict=True):
        assert mine.close(reference.reply(ask), 1e-3), ask


def test_requests_finish_beside_a_masked_one(sauced: Any, reference: Any) -> None:
    """Batchmates come and go; no step of a masked request is left unedited."""
    asks = [
        Ask(i, WHAT, ("both",) if i % 3 else (), max_tokens=2 + 3 * (i % 4))
        for i in range(14)
    ]
    cold(sauced)
    for ask, mine in zip(asks, run(sauced, asks), strict=True):
        assert mine.close(reference.reply(ask), 1e-3), ask


def test_abort_beside_a_masked_request(sauced: Any, reference: Any) -> None:
    """An aborted batchmate does not shift anyone's slots."""
    engine = sauced.llm_engine
    keep = Ask(6, WHAT, ("both",), max_tokens=8)
    asks = {"gone": Ask(7, WHAT, ("read",), max_tokens=64), "kept": keep}
    cold(sauced)
    for name, ask in asks.items():
        engine.add_request(name, ask.prompt(), ask.params())
    finished = []
    for step in range(40):
        finished += [out for out in engine.step() if out.finished]
        if step == 2:
            engine.abort_request(["gone"])
        if not engine.has_unfinished_requests():
            break
    (kept,) = [out for out in finished if out.request_id.startswith("kept")]
    assert reply_of(kept).close(reference.reply(keep), 1e-3)


def test_more_masks_than_slots(sauced: Any, reference: Any) -> None:
    """Slots are reused for ever; the thirtieth mask is edited like the first."""
    asks = [Ask(8, WHAT, ("both",), 0.5 + i / 10) for i in range(30)]
    cold(sauced)
    replies = run(sauced, asks)
    for i in (0, 7, 8, 15, 29):
        assert replies[i].close(reference.reply(asks[i]), 1e-3), i


def test_parallel_sampling_keeps_the_mask(sauced: Any, reference: Any) -> None:
    """Each of n answers is edited."""
    ask = Ask(2, WHAT, ("both",))
    params = ask.params()
    params.n = 3
    params.temperature = 0.01
    params.seed = 0
    cold(sauced)
    (output,) = sauced.generate([ask.prompt()], [params], use_tqdm=False)
    want = reference.reply(ask).tokens
    assert [tuple(o.token_ids) for o in output.outputs] == [want] * 3


@pytest.mark.parametrize(
    ("extra_args", "error", "says"),
    [
        ({"sauce": {"forget": ["seeen"]}}, UnknownConceptError, "seen"),
        ({"sauce": {"forgets": ["seen"]}}, InvalidRequestError, "forgets"),
        ({"sauce_forgot": ["seen"]}, InvalidRequestError, "sauce_forgot"),
        ({"sauce": "seen"}, InvalidRequestError, "sauce"),
        ({"sauce": {"forget": [3]}}, InvalidRequestError, "got int"),
        ({"sauce": {"forget": ["seen"], "strength": -1}}, InvalidStrengthError, "-1"),
        ({"sauce": {"forget": ["seen"], "strength": 99}}, InvalidStrengthError, "99"),
        (
            {"sauce": {"forget": ["seen"], "strength": float("nan")}},
            InvalidStrengthError,
            "nan",
        ),
        ({"sauce": {"forget": ["seen"], "profile": "kids"}}, RequestError, "profile"),
        ({"sauce": {"mask": {"mask_id": "x"}}}, InvalidRequestError, "mask"),
    ],
)
def test_bad_requests_are_refused(
    sauced: Any, extra_args: dict[str, Any], error: type[Exception], says: str
) -> None:
    """Each mistake is an error that names it; the engine goes on serving."""
    from vllm import SamplingParams

    ask = Ask(1, WHAT)
    with pytest.raises(error, match=says):
        sauced.generate(
            [ask.prompt()],
            [SamplingParams(max_tokens=2, extra_args=extra_args)],
            use_tqdm=False,
        )
    assert len(run(sauced, [ask])[0].tokens) == ask.max_tokens


def test_too_many_concepts(model_dir: Any, bundle_dir: Any) -> None:
    """The operator's limit holds."""
    from vllm_sauce.config import SauceConfig
    from vllm_sauce.plugin.frontend.admission import Admission

    admission = Admission.open(SauceConfig(bundle=str(bundle_dir), max_concepts=1))
    with pytest.raises(TooManyConceptsError, match="at most 1"):
        admission.resolve({"sauce": {"forget": ["seen", "read"]}})


def test_forged_cache_keys_are_refused(sauced: Any) -> None:
    """A client cannot name a masked request's blocks."""
    ask = Ask(None, WHAT)
    with pytest.raises(InvalidRequestError, match="cache_salt"):
        sauced.generate(
            [{**ask.prompt(), "cache_salt": "sauce:abc"}],
            [ask.params()],
            use_tqdm=False,
        )
    with pytest.raises(InvalidRequestError, match="uuid"):
        sauced.generate(
            [{**Ask(1, WHAT).prompt(), "multi_modal_uuids": {"image": "sauce:a:b"}}],
            [ask.params()],
            use_tqdm=False,
        )


def test_a_refused_raw_prompt_leaves_its_picture_alone(sauced: Any) -> None:
    """Rendered while it was admitted, and refused after that: sent again next time."""
    engine = sauced.llm_engine
    tokens = {"prompt_token_ids": sauced.get_tokenizer().encode(Ask(0, WHAT).text)}
    # vLLM 0.27 leaves out the names of pictures beside a text, and hashes them itself.
    forged: list[dict[str, Any]] = [
        {"cache_salt": "sauce:x"},
        {"multi_modal_uuids": {"image": "sauce:x"}, **tokens},
    ]
    for seed, spoilt in enumerate(forged, 60):
        ask = Ask(seed, WHAT, ("both",))
        prompt = {"multi_modal_data": ask.prompt()["multi_modal_data"], **tokens}
        with pytest.raises(InvalidRequestError, match="reserves"):
            engine.add_request("bad", {**prompt, **spoilt}, ask.params())
        assert not engine.has_unfinished_requests()
        assert len(run(sauced, [ask])[0].tokens) == ask.max_tokens
        with pytest.raises(InvalidRequestError, match="reserves"):
            engine.add_request("bad", {**prompt, **spoilt}, ask.params())
        engine.add_request("good", prompt, ask.params())
        while engine.has_unfinished_requests():
            engine.step()


def test_a_users_own_salt_still_separates(sauced: Any) -> None:
    """A salt and a mask together key the blocks."""
    ask = Ask(None, LONG, ("read",))
    cold(sauced)
    for salt, hits in (("a", False), ("b", False), ("a", True)):
        (out,) = sauced.generate(
            [{**ask.prompt(), "cache_salt": salt}], [ask.params()], use_tqdm=False
        )
        assert bool(out.num_cached_tokens) is hits


def test_a_plain_engine_refuses_to_pretend(plain: Any) -> None:
    """Asked to forget without sauce configured: refused, not served unedited."""
    ask = Ask(1, WHAT, ("seen",))
    with pytest.raises(InvalidRequestError, match="--plugin sauce"):
        run(plain, [ask])


def test_a_request_around_admission_is_refused(sauced: Any) -> None:
    """The worker is the last line: raw keys never reach the model."""
    runtime = runner_of(sauced).model._sauce_action
    with pytest.raises(InvalidRequestError, match="admission"):
        runtime.label_of({"sauce": {"forget": ["seen"]}})


def test_the_counter_counts_edited_tokens(sauced: Any) -> None:
    """The device counter proves that every token was edited but the sink."""
    runtime = runner_of(sauced).model._sauce_action
    (site,) = runtime.decoder.values()
    cold(sauced)
    before = int(site.table.edited_tokens.sum())
    ask = Ask(None, LONG, ("read",), max_tokens=4)
    (output,) = sauced.generate([ask.prompt()], [ask.params()], use_tqdm=False)
    counted = int(site.table.edited_tokens.sum()) - before
    # The last token is sampled and never fed back.
    assert counted == len(output.prompt_token_ids) - 1 + 3
    assert int((site.slot_of_token >= 0).sum()) == 1, "the last step's token"
