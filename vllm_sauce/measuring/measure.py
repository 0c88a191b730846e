# SPDX-License-Identifier: Apache-2.0
"""``sauce eval``: ask everything that has not been answered, then score all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from vllm_sauce.bundle import Bundle, check_replaceable
from vllm_sauce.concepts.engine_mode import MEASURED_AS
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.errors import ConfigError, LearnError, UnknownConceptError
from vllm_sauce.evaluation.asking.asker import Asker, Progress
from vllm_sauce.evaluation.asking.vllm_engine import EngineAsker
from vllm_sauce.evaluation.questions import PLURALS
from vllm_sauce.files import differences, file_sha256, write_whole
from vllm_sauce.measuring.answers import Answered, AnswerFile, Kept
from vllm_sauce.measuring.cases import Case, ask_of, cases, reads_word
from vllm_sauce.measuring.endpoint import EndpointAsker
from vllm_sauce.measuring.scores import Results, results
from vllm_sauce.measuring.settings import OURS, TOGETHER, EvalRequest
from vllm_sauce.models.answer_tokens import beginnings

AT_ONCE = 4096
"""Cases that are asked before their answers are kept."""
RUN_FILE, ANSWERS_FILE = "eval.json", "answers.jsonl"


def measure(
    request: EvalRequest, progress: Progress = lambda done, total: None
) -> Results:
    """Ask and score; what ``request.out`` holds already is not asked again.

    Raises: SauceError of the kind that says what is wrong
    """
    ours = Bundle.load(request.bundle, weights=False)
    beside = {n: Bundle.load(b, weights=False) for n, b in request.beside.items()}
    file = ConceptFile.read(request.concepts)
    names = _names(request, ours, beside, file)
    if request.record:
        _check_recordable(request, ours, names)
    _begin(request, ours, beside)
    asked = cases(file, request.split, names, request.settings, tuple(beside))
    digests: dict[int, str] = {}
    keyed = {case.key(digests): case for case in (c.plain() for c in asked)}
    keyed |= {case.key(digests): case for case in asked}
    kept = AnswerFile(request.out / ANSWERS_FILE)
    known = kept.read()
    # A version that read no probabilities has kept answers without.
    reads = request.url is None
    left = {
        key: case
        for key, case in keyed.items()
        if key not in known
        or (reads and known[key].leak is None and reads_word(case, file))
    }

    def told(more: int) -> None:
        progress(len(keyed) - len(left) + more, len(keyed))

    told(0)
    for name, bundle in {OURS: ours, **beside}.items():
        # Ours answers what asks for no edit, too.
        mine = [
            (key, case)
            for key, case in left.items()
            if name == (case.method if case.method in beside else OURS)
        ]
        if not mine:
            continue
        folder = request.beside.get(name, request.bundle)
        with _asker(request, bundle, folder) as asker:
            for start in range(0, len(mine), AT_ONCE):
                part = mine[start : start + AT_ONCE]
                answers = _ask(asker, part, request, file, told)
                kept.add((*one, answers[one[0]]) for one in part)
                known |= answers
                left = {key: case for key, case in left.items() if key not in answers}
    return results(_answered(asked, digests, known), file, names, request.methods)


def _check_recordable(request: EvalRequest, ours: Bundle, names: Sequence[str]) -> None:
    """Refuse what could not be recorded, before anything is asked."""
    if left := sorted({*ours.catalogue} - {*names}):
        raise ConfigError(
            f"--record is of all the bundle's concepts; {request.concepts} has no "
            f"{left[0]!r}"
        )
    if request.settings.together is None and len(names) < min(TOGETHER):
        raise ConfigError(f"--record of {len(names)} concepts: say --together how many")
    check_replaceable(request.bundle)


def _answered(
    asked: Sequence[Case], digests: dict[int, str], known: Mapping[str, Kept]
) -> list[Answered]:
    found = []
    for case in asked:
        answer, leak = known[case.key(digests)]
        plain = known[case.plain().key(digests)].answer
        found.append(Answered(case, answer, plain, leak))
    return found


def _ask(
    asker: Asker,
    part: Sequence[tuple[str, Case]],
    request: EvalRequest,
    file: ConceptFile,
    told: Callable[[int], None],
) -> dict[str, Kept]:
    most = request.settings.answer_tokens
    # A server tells what it says, not how likely anything else was.
    starts = (
        None if request.url is not None else cache(partial(beginnings, asker.tokenizer))
    )
    asks = [ask_of(case, file, most, starts) for _, case in part]
    answers = asker.ask(asks, lambda done, _: told(done))
    return {
        key: Kept(one, one.log_probability(ask.wanted) if ask.wanted else None)
        for (key, _), ask, one in zip(part, asks, answers, strict=True)
    }


def _names(
    request: EvalRequest,
    ours: Bundle,
    beside: Mapping[str, Bundle],
    file: ConceptFile,
) -> tuple[str, ...]:
    for name in request.names:
        if name not in ours.catalogue:
            raise UnknownConceptError(name, known=ours.catalogue.names())
        if name not in file.concepts:
            raise ConfigError(f"{request.concepts} has no concept {name!r}")
    names = request.names or tuple(n for n in file.concepts if n in ours.catalogue)
    if not names:
        raise ConfigError(f"{request.concepts} has none of the bundle's concepts")
    for method, other in beside.items():
        if lacking := [name for name in names if name not in other.catalogue]:
            raise ConfigError(
                f"{request.beside[method]} has no concept {lacking[0]!r}; choose those "
                "that all bundles have with --concept"
            )
    return names


def _begin(request: EvalRequest, bundle: Bundle, beside: Mapping[str, Bundle]) -> None:
    """Make the folder, or check that its answers are of the same run."""
    told = request.to_json() | {
        "model": request.model,
        "bundle": bundle.digest,
        "beside": {name: other.digest for name, other in beside.items()},
        "concepts_sha256": file_sha256(request.concepts),
        "banned_endings": list(PLURALS),
    }
    path = request.out / RUN_FILE
    wrong = differences(path, told)
    if wrong is None:
        request.out.mkdir(parents=True, exist_ok=True)
        write_run(path, told)
    elif wrong := [name for name in wrong if name != MEASURED_AS]:
        raise ConfigError(
            f"{request.out} has answers of a run that differs in "
            f"{', '.join(wrong)}; give another --out, or run as before"
        )


def write_run(path: Path, told: Mapping[str, Any]) -> None:
    """Write what a run's answers are of. Raises: LearnError"""
    write_whole(path, (json.dumps(told, indent=1) + "\n").encode(), LearnError)


@contextmanager
def _asker(request: EvalRequest, bundle: Bundle, folder: Path) -> Iterator[Asker]:
    if request.url is not None:
        yield EndpointAsker(request.url, request.model)
        return
    # What is not forgotten is measured, too.
    sauce = {"allow_weak": list(bundle.catalogue.weak())}
    with EngineAsker.open(
        request.model, folder, engine_args=request.engine_args, sauce=sauce
    ) as asker:
        path = request.out / RUN_FILE
        write_run(path, json.loads(path.read_text()) | {MEASURED_AS: asker.mode()})
        yield asker
