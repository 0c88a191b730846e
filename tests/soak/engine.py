# SPDX-License-Identifier: Apache-2.0
"""An engine under random schedules, every answer compared with a cold engine's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial, singledispatchmethod
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from tests.plugin.conftest import RUNNER, engine
from tests.plugin.support import MODEL, Reply, cold, reply_of, runner_of
from tests.soak import schedule as ops
from tests.soak.answers import Answers, difference, is_tie
from tests.soak.inputs import Inputs
from tests.soak.universe import FORGED, NUM_TOKENS, REQUESTS, Request
from vllm_sauce.errors import RequestError

DRAIN_STEPS = 600
"""No schedule needs more steps to its end."""

LIMITS: dict[str, Any] = {
    "max_model_len": 320,
    "max_num_seqs": 8,
    # Prefills are chunked, and the encoder cache holds three pictures.
    "max_num_batched_tokens": 160,
    # Of 32 tokens: two long requests fill them, so running ones are preempted.
    "num_gpu_blocks_override": 24,
}


class Difference(AssertionError):
    """An answer that a cold engine would not have given, or a refusal that went wrong.

    Also an error of the engine itself: whatever a client must never see.
    """


@dataclass
class Asked:
    """A request that the engine holds, and what it has said so far."""

    request: Request
    max_tokens: int
    so_far: Reply | None = None


def soak_engine(bundle: Path) -> Any:
    """Start an engine with little room in every cache."""
    if RUNNER == "v1":
        _send_pictures_whole()
    return engine(MODEL, {"bundle": str(bundle)}, **LIMITS)


def _send_pictures_whole() -> None:
    """Go around a fault of vLLM's own (0.32, V1) that has nothing to do with masks.

    A request that begins with a prefix hit is sent without the pictures that it covers,
    and V1 never gets them when the request is preempted and its blocks are lost:
    "Encoder cache miss" ends the engine. V2 is sent such a request anew.
    """
    from vllm.v1.core.sched import output

    output.strip_covered_mm_data = lambda features, *_, **__: features


class Soak:
    """Runs schedules on one engine."""

    def __init__(self, llm: Any, answers: Answers) -> None:
        self.llm = llm
        self.engine = llm.llm_engine
        self.answers = answers
        self.inputs = Inputs(llm)
        self.counts: Counter[str] = Counter()
        self.asked: dict[str, Asked] = {}
        self.broken = False
        """Whether the engine itself failed: it cannot be used any more."""
        self.planted: Callable[[], AbstractContextManager[None]] = nullcontext
        """Plants a test's bug while a schedule runs, not while answers are learnt."""
        self._learning = False
        self._next_id = 0
        self._watch()

    def learn(self, requests: Iterable[Request] = REQUESTS) -> int:
        """Ask what has no known answer alone on a cold engine; return how many."""
        missing = self.answers.missing(requests)
        kept, self.counts = self.counts, Counter()
        self._learning = True
        for request in missing:
            cold(self.llm)
            self._forget_pictures()
            self._send(request, NUM_TOKENS, cached=False)
            (reply,) = self._drain()
            self.answers.put(request, reply)
        self._learning = False
        self.counts = kept
        return len(missing)

    def run(self, schedule: list[ops.Op]) -> None:
        """Run a schedule from empty caches to its last answer. Raises: Difference."""
        if self.broken:
            return
        wanted = [op.request for op in schedule if isinstance(op, ops.Add)]
        self.learn(wanted)
        kept, self.counts = self.counts, Counter()
        cold(self.llm)
        self._forget_pictures()
        try:
            with self.planted():
                for op in schedule:
                    self._do(op)
                self._drain()
            self._check_idle()
        except Difference:
            self._clear()
            self.counts = kept
            raise
        self.counts = kept + self.counts
        self.counts["schedules"] += 1

    @singledispatchmethod
    def _do(self, op: Any) -> None:
        raise TypeError(f"no such operation: {op!r}")

    @_do.register
    def _add(self, op: ops.Add) -> None:
        self._send(op.request, op.max_tokens, op.cached)

    @_do.register
    def _forge(self, op: ops.Forge) -> None:
        self._send(op.request, 1, cached=False, forged=op.kind)

    @_do.register
    def _steps(self, op: ops.Step) -> None:
        for _ in range(op.times):
            self._step()

    @_do.register
    def _abort(self, op: ops.Abort) -> None:
        if not self.asked:
            return
        name = list(self.asked)[op.place % len(self.asked)]
        self.engine.abort_request([name])
        gone = self.asked.pop(name)
        self.counts["aborted"] += 1
        if gone.so_far is not None:
            self._compare(gone, gone.so_far)

    @_do.register
    def _reset(self, op: ops.Reset) -> None:
        if op.cache == "prefix":
            self.engine.reset_prefix_cache(reset_running_requests=True)
        elif op.cache == "pictures":
            self._forget_pictures()
        elif not self.asked:  # vLLM: the requests in progress would miss theirs
            self.engine.reset_encoder_cache()
        self.counts[f"resets of {op.cache}"] += 1

    def _send(
        self, request: Request, max_tokens: int, cached: bool, forged: str = ""
    ) -> None:
        prompt = self.inputs.prompt(request, cached=cached)
        by_name = "mm_kwargs" in prompt and None in prompt["mm_kwargs"]["image"]
        changed = FORGED[forged] if forged else {}
        prompt |= changed.get("prompt", {})
        if "multi_modal_uuids" in prompt and "prompt" in prompt:
            # Beside a text vLLM 0.28 takes no notice of them.
            words = prompt.pop("prompt")
            prompt["prompt_token_ids"] = self.llm.get_tokenizer()(words).input_ids
        params = request.params(max_tokens)
        if "forget" in changed:
            params.extra_args = {"sauce": {"forget": list(changed["forget"])}}
        self._next_id += 1
        name = str(self._next_id)
        try:
            self.engine.add_request(name, prompt, params)
        except RequestError as error:
            if not (forged or request.refused):
                raise Difference(f"refused: {request}: {error}") from error
            in_core = hasattr(error, "sauce_request_id")
            if in_core:
                self.inputs.sent(prompt)
            where = "in the core" if in_core else "at admission"
            self.counts[f"refused {where}"] += 1
        except Exception as error:
            raise Difference(f"failed: {request}: {error!r}") from error
        else:
            self.inputs.sent(prompt)
            self.counts["requests"] += 1
            self.counts["masked requests"] += bool(request.forget)
            self.counts["requests with embeddings"] += request.embeds
            self.counts["embeddings by name"] += by_name
            self.asked[name] = Asked(request, max_tokens)
            if forged or request.refused:
                raise Difference(f"not refused: {forged} {request}")
        if (noted := self.engine.get_num_unfinished_requests()) != len(self.asked):
            raise Difference(f"{noted} requests noted, {len(self.asked)} are there")

    def _step(self) -> list[Reply]:
        if not self.asked:
            return []
        try:
            outputs = self.engine.step()
        except Exception as error:
            self.broken = True
            raise Difference(f"the engine failed: {error!r}") from error
        self.counts["steps"] += 1
        finished = []
        for output in outputs:
            asked = self.asked.get(output.request_id.partition("-")[0])
            if asked is None:
                raise Difference(f"an answer to nobody: {output.request_id}")
            asked.so_far = reply_of(output)
            if output.finished:
                finished.append(asked.so_far)
                del self.asked[output.request_id.partition("-")[0]]
                self._finish(asked, asked.so_far)
        return finished

    def _finish(self, asked: Asked, reply: Reply) -> None:
        self.counts["finished"] += 1
        self.counts["prefix cache hits"] += reply.cached > 0
        if len(reply.tokens) != asked.max_tokens:
            raise Difference(f"{len(reply.tokens)} tokens: {asked}")
        if not self._learning:
            self._compare(asked, reply)

    def _compare(self, asked: Asked, reply: Reply) -> None:
        want = self.answers.get(asked.request)
        if want is None:
            raise Difference(f"answered, and must not be: {asked.request}")
        self.counts["compared"] += 1
        if text := difference(reply, want):
            raise Difference(f"{asked.request}: {text}")
        self.counts["ties"] += is_tie(reply, want)

    def _drain(self) -> list[Reply]:
        finished: list[Reply] = []
        for _ in range(DRAIN_STEPS):
            if not self.asked:
                return finished
            finished += self._step()
        raise Difference(f"still there after {DRAIN_STEPS} steps: {self.asked}")

    def _check_idle(self) -> None:
        if self.engine.has_unfinished_requests():
            raise Difference("the engine waits for an answer that nobody owes")

    def _forget_pictures(self) -> None:
        self.engine.reset_mm_cache()
        self.inputs.held.clear()

    def _clear(self) -> None:
        """Give up what is left of a schedule that failed."""
        if self.broken:
            return
        noted = list(self.engine.output_processor.request_states)
        self.engine.output_processor.abort_requests(noted, internal=True)
        self.engine.engine_core.abort_requests(noted)
        self.asked.clear()
        for _ in range(DRAIN_STEPS):
            if not self.engine.has_unfinished_requests():
                return
            self.engine.step()
        self.broken = True

    def _watch(self) -> None:
        """Count what a soak must have met, or it proves nothing."""
        runtime = runner_of(self.llm).model._sauce_action
        scheduler = self.engine.engine_core.engine_core.scheduler
        encoder_cache = scheduler.encoder_cache_manager
        for owner, name, seen in (
            (runtime, "begin_step", self._saw_step),
            (runtime, "announce", self._saw_pictures),
            (scheduler, "_preempt_request", self._saw_preemption),
        ):
            setattr(owner, name, partial(_after, getattr(owner, name), seen))
        check = encoder_cache.check_and_update_cache

        def check_and_count(*args: Any) -> bool:
            hit = bool(check(*args))
            self.counts["encoder cache hits"] += hit
            return hit

        encoder_cache.check_and_update_cache = check_and_count

    def _saw_step(self, req_ids: Any, *_: Any) -> None:
        masks = set(map(runner_of(self.llm).model._sauce_action.live.get, req_ids))
        self.counts["batches of several masks"] += len(masks) > 1

    def _saw_pictures(self, identifiers: Any, *_: Any) -> None:
        owners = {i.rpartition(":")[0] for i in identifiers}
        self.counts["pictures encoded"] += len(identifiers)
        self.counts["encoder runs of several masks"] += len(owners) > 1

    def _saw_preemption(self, *_: Any, **__: Any) -> None:
        self.counts["preemptions"] += 1


def _after(
    original: Callable[..., Any], seen: Callable[..., None], *args: Any, **kwargs: Any
) -> Any:
    result = original(*args, **kwargs)
    seen(*args, **kwargs)
    return result


def run_block(soak: Soak, number: int, schedules: int, *, shrink: bool = True) -> None:
    """Run the schedules that a seed stands for. Raises: Difference, the smallest."""
    smallest: list[str] = []

    @seed(number)
    @settings(
        max_examples=schedules,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(ops.SCHEDULES)
    def block(schedule: list[ops.Op]) -> None:
        try:
            soak.run(schedule)
        except Difference as error:
            smallest[:] = [f"seed {number}: {error}\n{ops.text(schedule)}"]
            raise

    try:
        block()
    except (Difference, Flaky) as error:
        # Flaky: it does not happen again from empty caches, or the engine is gone.
        again = "" if isinstance(error, Difference) else " (not again by itself)"
        raise Difference("".join(smallest) + again) from error
