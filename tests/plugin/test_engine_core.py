# SPDX-License-Identifier: Apache-2.0
"""A request that no admission let in fails alone, where it enters the engine core."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tests.plugin.support import Ask, cold, run
from vllm_sauce.errors import (
    InvalidRequestError,
    TooManyConceptsError,
    UnsupportedFeatureError,
)
from vllm_sauce.plugin.engine_core import _after_changes, _collective_rpc, check
from vllm_sauce.plugin.frontend.admission import Admission
from vllm_sauce.plugin.startup.ranks import CALL, LOOK
from vllm_sauce.unlearning.mask import Checked, Mask, marked

WHAT = "what is in the picture ?"
MARKED = "without passing sauce's admission"


def processed(llm: Any, ask: Ask, name: str) -> Any:
    """Return the request that an API process would send for a question."""
    engine = llm.llm_engine
    prompt = llm._preprocess_cmpl([ask.prompt()])[0]
    return engine.input_processor.process_inputs(
        name, prompt, ask.params(), supported_tasks=("generate",)
    )


def no_mark(request: Any) -> None:
    request.sampling_params.extra_args = None


def raw_keys(request: Any) -> None:
    request.sampling_params.extra_args = {"sauce": {"forget": ["seen"]}}


def flat_keys(request: Any) -> None:
    request.sampling_params.extra_args = {"sauce_forget": ["seen"]}


def more_than_the_mark(request: Any) -> None:
    request.sampling_params.extra_args["sauce"]["forget"] = ["seen"]


def mask_of_another_bundle(request: Any) -> None:
    wire = Mask.of([("both", 1.0)], "f" * 64).to_wire()
    request.sampling_params.extra_args["sauce"]["mask"] = wire


def no_mask(request: Any) -> None:
    request.sampling_params.extra_args["sauce"]["mask"] = "seen"


def plain_under_a_masks_keys(request: Any) -> None:
    request.sampling_params.extra_args["sauce"]["mask"] = None


def salt_lost(request: Any) -> None:
    request.cache_salt = None


def name_lost(request: Any) -> None:
    for feature in request.mm_features:
        feature.identifier = feature.identifier.rpartition(":")[2]


def cores_own_mark(request: Any) -> None:
    mask = Mask.of([("both", 1.0)], "f" * 64)
    request.sampling_params.extra_args["sauce"] = Checked(mask)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_mark, MARKED),
        (raw_keys, MARKED),
        (flat_keys, MARKED),
        (more_than_the_mark, MARKED),
        (mask_of_another_bundle, "does not fit"),
        (no_mask, "mask"),
        (cores_own_mark, MARKED),
        (plain_under_a_masks_keys, "does not fit its mask"),
        (salt_lost, "cache_salt"),
        (name_lost, "identifier"),
    ],
)
def test_a_request_around_admission_fails_alone(
    sauced: Any, spoil: Callable[[Any], None], says: str
) -> None:
    """Refused, not waited for, and a neighbour in the engine is answered."""
    neighbour = Ask(2, WHAT, ("both",))
    cold(sauced)
    (want,) = run(sauced, [neighbour])
    cold(sauced)
    engine = sauced.llm_engine
    engine.add_request("good", neighbour.prompt(), neighbour.params())
    bad = processed(sauced, Ask(1, WHAT, ("both",)), "bad")
    spoil(bad)
    with pytest.raises(InvalidRequestError, match=says):
        engine.add_request("bad", bad, bad.params)
    outputs: list[Any] = []
    for _ in range(20):
        outputs += [out for out in engine.step() if out.finished]
    assert not engine.has_unfinished_requests()
    from tests.plugin.support import reply_of

    (good,) = outputs
    assert reply_of(good).close(want)


def test_a_plain_engine_refuses_a_mask(plain: Any, sauced: Any) -> None:
    """An API process with sauce before an engine without it."""
    request = processed(sauced, Ask(None, WHAT, ("read",)), "masked")
    with pytest.raises(InvalidRequestError, match="runs without sauce"):
        plain.llm_engine.add_request("masked", request, request.params)
    assert not plain.llm_engine.has_unfinished_requests()


def with_limits(llm: Any, **changed: Any) -> Admission:
    """Return what a core would check with, were its configuration another."""
    admission: Admission = llm.llm_engine.engine_core.engine_core._sauce_admission
    return replace(admission, config=replace(admission.config, **changed))


def test_mandatory_concepts_are_looked_for(sauced: Any) -> None:
    """A mask without them is refused, and a plain request too."""
    admission = with_limits(sauced, forget=("read",))
    asks = [Ask(1, WHAT), Ask(1, WHAT, ("seen",)), Ask(1, WHAT, ("read", "seen"))]
    requests = [processed(sauced, ask, str(i)) for i, ask in enumerate(asks)]
    for request in requests[:2]:
        with pytest.raises(InvalidRequestError, match="must forget here: read"):
            check(admission, request)
    found = check(admission, requests[2])
    assert found is not None and found.names() == ("read", "seen")


def test_limits_are_looked_at(sauced: Any) -> None:
    """A worker has room for so many latents, whatever an API process thought."""
    request = processed(sauced, Ask(1, WHAT, ("both",)), "x")
    with pytest.raises(TooManyConceptsError, match="at most 2 latents"):
        check(with_limits(sauced, max_latents=2), request)


def test_what_is_let_in_bears_the_cores_mark(sauced: Any) -> None:
    """Plain or masked; the request that came in, and its parameters, stay."""
    core = sauced.llm_engine.engine_core.engine_core
    for ask in (Ask(1, WHAT), Ask(1, WHAT, ("both",))):
        request = processed(sauced, ask, "x")
        request.sampling_params.extra_args["other"] = 1
        before = dict(request.sampling_params.extra_args)
        passed, _ = core.preprocess_add_request(request)
        mark = passed.sampling_params.extra_args.pop("sauce")
        assert isinstance(mark, Checked)
        assert (mark.mask and mark.mask.names()) == (ask.forget or None)
        assert passed.sampling_params.extra_args == {"other": 1}
        assert request.sampling_params.extra_args == before


def chunk(llm: Any, ask: Ask, name: str) -> Any:
    """Return a chunk of a session as its front sends it."""
    request = processed(llm, ask, name)
    request.resumable = True
    return request


def test_a_chunk_of_another_mask_joins_no_living_session(sauced: Any) -> None:
    """vLLM joins by the id alone, and the session's blocks keep its first salt."""
    core = sauced.llm_engine.engine_core.engine_core
    asks = [
        Ask(None, WHAT),
        Ask(None, WHAT, ("read",)),
        Ask(None, WHAT, ("read",), 2.0),
    ]
    for first in asks:
        # Alive from here on, wherever the scheduler has it.
        session, _ = core.preprocess_add_request(chunk(sauced, first, "s"))
        for ask in asks:
            if ask == first:
                core.preprocess_add_request(chunk(sauced, ask, "s"))
                continue
            with pytest.raises(InvalidRequestError, match="session 's' is open"):
                core.preprocess_add_request(chunk(sauced, ask, "s"))
            core.preprocess_add_request(chunk(sauced, ask, "another"))
            # What is no chunk ends the session, and joins nothing.
            core.preprocess_add_request(processed(sauced, ask, "s"))
        session.status = type(session.status).FINISHED_ABORTED
    session, _ = core.preprocess_add_request(chunk(sauced, asks[0], "s"))
    assert core._sauce_sessions["s"] is session


class Core:
    """What of an engine core is looked at around a call to its ranks."""

    is_sleeping = False

    def __init__(self, *reports: Any) -> None:
        self.reports = list(reports)
        self.looks = 0
        self._sauce_admission = self
        self._sauce_proven = True
        self.model_executor = self
        self.vllm_config = SimpleNamespace(
            parallel_config=SimpleNamespace(world_size=len(reports))
        )

    def collective_rpc(self, name: str) -> list[Any]:
        self.looks += name == LOOK
        assert name in (CALL, LOOK)
        return self.reports


class Process(Core):
    """One in a process of its own, which tells clients what it ends."""

    def __init__(self, *reports: Any) -> None:
        super().__init__(*reports)
        mask = Mask.of([("dog", 1.0)], "digest")
        self.scheduler = self
        self.requests = {
            name: SimpleNamespace(
                request_id=name,
                sampling_params=SimpleNamespace(extra_args=marked(None, Checked(one))),
            )
            for name, one in (("masked", mask), ("plain", None))
        }
        self.told: list[Any] = []

    def finish_requests(self, names: list[str], status: Any) -> list[Any]:
        assert status.name == "FINISHED_ABORTED"
        return [self.requests.pop(name) for name in names]

    def _send_abort_outputs(self, ended: list[Any]) -> None:
        self.told += [request.request_id for request in ended]


PROVEN, NOT = {"proven": True}, {"proven": False}


def raises(*_: Any) -> None:
    raise KeyError


@pytest.mark.parametrize(
    ("reports", "proven"),
    [
        ([PROVEN], True),
        ([PROVEN, PROVEN], True),
        ([NOT], False),
        ([PROVEN, NOT], False),
        ([PROVEN, None], False),  # the answer to another call
    ],
)
def test_after_a_call_all_ranks_must_be_proven(
    reports: list[Any], proven: bool
) -> None:
    core = Core(*reports)
    assert _after_changes(lambda *_: "done", core, "reload_weights") == "done"
    assert core._sauce_proven is proven


@pytest.mark.parametrize(
    ("reports", "proven"), [([PROVEN], True), ([NOT], False), ([PROVEN, PROVEN], False)]
)
def test_after_a_call_that_fails_several_ranks_answers_are_out_of_step(
    reports: list[Any], proven: bool
) -> None:
    core = Core(*reports)
    with pytest.raises(KeyError):
        _after_changes(raises, core, "reload_weights")
    assert core._sauce_proven is proven


@pytest.mark.parametrize("method", ["new_weights", lambda worker: None])
def test_weights_are_looked_at_around_what_may_do_anything(method: Any) -> None:
    """Before and after it, and if it fails."""
    core = Core(PROVEN)

    def runs(*args: Any) -> str:
        assert args == (core, method, 1) and core.looks == 1
        return "done"

    assert _collective_rpc(runs, core, method, 1) == "done"
    assert core.looks == 2 and core._sauce_proven
    with pytest.raises(KeyError):
        _collective_rpc(raises, core, method)
    assert core.looks == 4


def test_what_vllm_calls_while_it_starts_is_not_looked_at() -> None:
    """There is no scheduler yet, nor anything that was proven: ``update_max_model_len``
    comes before both."""
    core = Core(NOT)
    del core._sauce_proven
    assert _collective_rpc(lambda *_: "done", core, "update_max_model_len") == "done"
    assert core.looks == 0 and not hasattr(core, "_sauce_proven")


def test_what_is_known_costs_no_look() -> None:
    core = Core(PROVEN)
    assert _collective_rpc(lambda *_: "done", core, "profile") == "done"
    assert core.looks == 0


def test_an_engine_that_goes_to_sleep_later_lets_nothing_in_until_then() -> None:
    """It waits for what runs; its ranks are asked once they sleep."""
    core = Core(PROVEN)
    asleep: Future[None] = Future()
    assert _after_changes(lambda *_: asleep, core, 2) is asleep
    assert not core._sauce_proven
    core.reports = [NOT]
    asleep.set_result(None)
    assert not core._sauce_proven
    core.reports = [PROVEN]
    _after_changes(lambda *_: None, core)
    assert core._sauce_proven


@pytest.mark.parametrize(
    ("report", "sleeps", "ended"),
    [(PROVEN, False, []), (NOT, True, []), (NOT, False, ["masked"])],
)
def test_masked_requests_do_not_outlive_the_proof(
    report: Any, sleeps: bool, ended: list[str]
) -> None:
    """In a worker they would end the engine, others' requests with it."""
    core = Process(report)
    core.is_sleeping = sleeps
    _after_changes(lambda *_: None, core)
    assert core.told == ended
    assert set(core.requests) == {"masked", "plain"} - set(ended)


def test_a_call_that_only_asks_takes_nothing_back() -> None:
    core = Core(PROVEN, PROVEN)
    with pytest.raises(KeyError):
        _collective_rpc(raises, core, CALL)
    assert core._sauce_proven and not core.looks


def test_what_brings_other_weights_never_comes_to_a_rank() -> None:
    core = Core(PROVEN, PROVEN)
    for args, kwargs in (
        (("update_weights",), {}),
        (("reset_weights",), {}),
        ((), {"method": "update_config"}),
    ):
        with pytest.raises(UnsupportedFeatureError, match="weights it was started"):
            _collective_rpc(raises, core, *args, **kwargs)
    assert core._sauce_proven
