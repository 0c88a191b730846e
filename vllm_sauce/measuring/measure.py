# SPDX-License-Identifier: Apache-2.0
"""``sauce eval``: ask everything that has not been answered, then score all of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vllm_sauce.bundle import Bundle
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.errors import ConfigError, LearnError, UnknownConceptError
from vllm_sauce.evaluation.asking.asker import Answer, Asker, Progress
from vllm_sauce.evaluation.asking.vllm_engine import EngineAsker
from vllm_sauce.files import file_sha256, write_whole
from vllm_sauce.measuring.answers import AnswerFile
from vllm_sauce.measuring.cases import Case, ask_of, cases
from vllm_sauce.measuring.endpoint import EndpointAsker
from vllm_sauce.measuring.scores import Answered, Results, results
from vllm_sauce.measuring.settings import EvalRequest

AT_ONCE = 4096
"""Cases that are asked before their answers are kept."""
RUN_FILE, ANSWERS_FILE = "eval.json", "answers.jsonl"


def measure(
    request: EvalRequest, progress: Progress = lambda done, total: None
) -> Results:
    """Ask and score; what ``request.out`` holds already is not asked again.

    Raises: SauceError of the kind that says what is wrong
    """
    bundle = Bundle.load(request.bundle, weights=False)
    file = ConceptFile.read(request.concepts)
    names = _names(request, bundle, file)
    _begin(request, bundle)
    asked = cases(file, request.split, names, request.settings)
    digests: dict[int, str] = {}
    keyed = {case.key(digests): case for case in (c.plain() for c in asked)}
    keyed |= {case.key(digests): case for case in asked}
    kept = AnswerFile(request.out / ANSWERS_FILE)
    known = kept.read()
    left = {key: case for key, case in keyed.items() if key not in known}
    done = len(keyed) - len(left)
    progress(done, len(keyed))
    if left:
        with _asker(request, bundle) as asker:
            for part in _parts(list(left)):
                asks = [
                    ask_of(left[key], file, request.settings.answer_tokens)
                    for key in part
                ]
                before = done

                def told(number: int, total: int, before: int = before) -> None:
                    progress(before + number, len(keyed))

                found = dict(zip(part, asker.ask(asks, told), strict=True))
                kept.add((key, left[key], answer) for key, answer in found.items())
                known |= found
                done += len(part)
    return results(_answered(asked, digests, known), file, names, request.settings)


def _answered(
    asked: Sequence[Case], digests: dict[int, str], known: dict[str, Answer]
) -> list[Answered]:
    return [
        Answered(case, known[case.key(digests)], known[case.plain().key(digests)])
        for case in asked
    ]


def _names(request: EvalRequest, bundle: Bundle, file: ConceptFile) -> tuple[str, ...]:
    for name in request.names:
        if name not in bundle.catalogue:
            raise UnknownConceptError(name, known=bundle.catalogue.names())
        if name not in file.concepts:
            raise ConfigError(f"{request.concepts} has no concept {name!r}")
    names = request.names or tuple(n for n in file.concepts if n in bundle.catalogue)
    if not names:
        raise ConfigError(f"{request.concepts} has none of the bundle's concepts")
    return names


def _begin(request: EvalRequest, bundle: Bundle) -> None:
    """Make the folder, or check that its answers are of the same run."""
    told = request.to_json() | {
        "model": request.model,
        "bundle": bundle.digest,
        "concepts_sha256": file_sha256(request.concepts),
    }
    path = request.out / RUN_FILE
    if path.exists():
        before = json.loads(path.read_text())
        if wrong := sorted(n for n in {*before, *told} if before.get(n) != told.get(n)):
            raise ConfigError(
                f"{request.out} has answers of a run that differs in "
                f"{', '.join(wrong)}; give another --out, or run as before"
            )
        return
    request.out.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(told, indent=1) + "\n").encode(), LearnError)


def _parts(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), AT_ONCE):
        yield keys[start : start + AT_ONCE]


@contextmanager
def _asker(request: EvalRequest, bundle: Bundle) -> Iterator[Asker]:
    if request.url is not None:
        yield EndpointAsker(request.url, request.model)
        return
    # What is not forgotten is measured, too.
    sauce = {"allow_weak": list(bundle.catalogue.weak())}
    with EngineAsker.open(
        request.model, request.bundle, engine_args=request.engine_args, sauce=sauce
    ) as asker:
        yield asker
