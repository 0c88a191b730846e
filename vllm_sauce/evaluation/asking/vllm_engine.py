# SPDX-License-Identifier: Apache-2.0
"""Asks vLLM: every question with a mask of its own, many at the same time.

Edits that are only tried are the catalogue of a temporary bundle, so what a served edit
would do is what is measured.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.client import check_strength, forget
from vllm_sauce.concepts import TRIAL, Catalogue, Concept, SiteEdit
from vllm_sauce.concepts.engine_mode import engine_mode
from vllm_sauce.data.samples import picture_digest
from vllm_sauce.errors import ConfigError, UnknownConceptError, UnsupportedVLLMError
from vllm_sauce.evaluation.asking.asker import Answer, Ask, Place, Progress
from vllm_sauce.evaluation.asking.rendered_prompts import RenderedPrompts
from vllm_sauce.models.answer_tokens import Tokens
from vllm_sauce.sae import SAEWeights

DOMAIN = "candidates"
MAX_TOKEN_IDS = 128
"""What vLLM gives log-probabilities of for one request."""

LOWEST = -100.0
"""Log-probabilities below are taken as this."""

WINDOW = 1024
"""Questions given to an engine at a time, which bounds memory."""

Edits = Mapping[str, SiteEdit]


class EngineAsker:
    """Asks an engine that serves a bundle."""

    def __init__(self, llm: Any, bundle: Path) -> None:
        self.llm, self.bundle = llm, bundle
        self.tokenizer = llm.get_tokenizer()
        self.names = frozenset(Bundle.load(bundle, weights=False).catalogue)
        self._prompts = RenderedPrompts()

    @classmethod
    @contextmanager
    def open(
        cls,
        model: str | Path,
        bundle: Path,
        *,
        engine_args: Mapping[str, Any] | None = None,
        sauce: Mapping[str, object] | None = None,
    ) -> Iterator[Self]:
        """Start an engine for a bundle's folder, and stop it at the end.

        ``sauce``: more of the plugin's settings.
        """
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        arguments: dict[str, Any] = {
            "enforce_eager": True,
            # Prompts are prepared once here; vLLM would do it for every mask.
            "mm_processor_cache_gb": 0,
            **(engine_args or {}),
        }
        settings = {"sauce": {"bundle": str(bundle), **(sauce or {})}}
        llm = LLM(model=str(model), additional_config=settings, **arguments)
        try:
            yield cls(llm, bundle)
        finally:
            llm.llm_engine.engine_core.shutdown()

    @classmethod
    @contextmanager
    def of_candidates(
        cls,
        model: str | Path,
        saes: Mapping[str, SAEWeights],
        candidates: Mapping[str, Edits],
        *,
        engine_args: Mapping[str, Any] | None = None,
        widest: int = 0,
        most: int = 1,
    ) -> Iterator[Self]:
        """Start an engine that knows edits by name; each may act at several sites.

        ``widest``: latents at a site, and ``most``: candidates, of one question.

        Raises: ConfigError, BundleError
        """
        if not candidates:
            raise ConfigError("there is no candidate edit to try")
        tried = [edit for edits in candidates.values() for edit in edits.values()]
        alone = max(len(edit.latents) for edit in tried)
        # Slots are as wide as a mask may be, not as all candidates together.
        sauce = {"max_latents": max(alone, widest), "max_concepts": most}
        with tempfile.TemporaryDirectory(prefix="sauce-candidates-") as folder:
            bundle = Path(folder) / "bundle"
            _write_bundle(bundle, model, saes, candidates)
            with cls.open(model, bundle, engine_args=engine_args, sauce=sauce) as asker:
                yield asker

    def mode(self) -> dict[str, object]:
        """Return what answers may depend on beside the model and the bundle."""
        return engine_mode(self.llm.llm_engine.vllm_config)

    def ask(
        self, asks: Sequence[Ask], progress: Progress = lambda done, total: None
    ) -> list[Answer]:
        """Return the answers, in their order.

        Raises: UnknownConceptError for a concept that the bundle does not have
        """
        for ask in asks:
            _check(ask, self.names)
        pictures = {id(p): p for ask in asks if (p := ask.question.picture) is not None}
        digests = {key: picture_digest(picture) for key, picture in pictures.items()}

        def place(number: int) -> tuple[tuple[str, ...], float, str]:
            ask = asks[number]
            return ask.forget, ask.strength, digests.get(id(ask.question.picture), "")

        # One mask's questions about a picture share its patches and cached blocks.
        order = sorted(range(len(asks)), key=place)
        answers: dict[int, Answer] = {}
        progress(0, len(asks))
        for start in range(0, len(order), WINDOW):
            part = order[start : start + WINDOW]
            found = self._run([asks[i] for i in part], digests)
            answers |= zip(part, found, strict=True)
            progress(len(answers), len(asks))
        return [answers[number] for number in range(len(asks))]

    def _run(self, asks: Sequence[Ask], digests: Mapping[int, str]) -> list[Answer]:
        engine, outputs = self.llm.llm_engine, dict[str, Any]()
        added: list[str] = []
        try:
            for number, ask in enumerate(asks):
                banned = whole_tokens(self.tokenizer, ask.banned)
                for at, (before, tokens) in enumerate(ask.places().items()):
                    prompt = self._prompts.of(self.llm, ask.question, digests)
                    if before:
                        ids = [*prompt["prompt_token_ids"], *before]
                        prompt["prompt_token_ids"] = ids
                    params = _params(ask, before, tokens, banned)
                    added.append(engine.add_request(f"{number}.{at}", prompt, params))
            while engine.has_unfinished_requests():
                outputs |= {one.request_id: one for one in engine.step()}
        except BaseException:
            engine.abort_request(added, internal=True)
            raise
        answers = []
        for number, ask in enumerate(asks):
            found = {
                before: _place(outputs[f"{number}.{at}"], tokens)
                for at, (before, tokens) in enumerate(ask.places().items())
            }
            written = outputs[f"{number}.0"].outputs[0]
            finished = written.finish_reason == "stop"
            answers.append(Answer.read(ask, found, written.text, finished=finished))
        return answers


def _check(ask: Ask, names: Collection[str]) -> None:
    for name in ask.forget:
        if name not in names:
            raise UnknownConceptError(name, known=sorted(names))
    check_strength(ask.strength)
    most = max(map(len, ask.places().values()))
    if most > MAX_TOKEN_IDS:
        raise ConfigError(
            f"a question reads at most {MAX_TOKEN_IDS} tokens at a place, got {most}"
        )


def _write_bundle(
    folder: Path,
    model: str | Path,
    saes: Mapping[str, SAEWeights],
    candidates: Mapping[str, Edits],
) -> None:
    used = {site for edits in candidates.values() for site in edits}
    if missing := sorted(used - set(saes)):
        raise ConfigError(
            f"a candidate edits {missing[0]!r}, which has no SAE here; there are "
            f"{', '.join(sorted(saes))}"
        )
    concepts = [
        Concept(name=name, domain=DOMAIN, edits=edits, provenance={TRIAL: True})
        for name, edits in candidates.items()
    ]
    # A site that no candidate edits would cost every token of it time.
    sites = {site: sae for site, sae in saes.items() if site in used}
    Bundle.build(fingerprint_model(model), sites, Catalogue(concepts)).save(folder)


def whole_tokens(tokenizer: Any, words: Sequence[str]) -> list[int]:
    """Return tokens that are a whole word, at the start of a text or within one.

    Of a word that has more tokens at the start, vLLM's ``bad_words`` bans these alone.
    """
    forms = [form for word in words for form in (word, f" {word}")]
    tokens = [tokenizer.encode(form, add_special_tokens=False) for form in forms]
    return sorted({found[0] for found in tokens if len(found) == 1})


def _params(ask: Ask, before: Tokens, tokens: Tokens, banned: Sequence[int]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0,
        max_tokens=1 if before else ask.max_tokens,
        logprob_token_ids=list(tokens) or None,
        extra_args=forget(*ask.forget, strength=ask.strength) if ask.edited else None,
        bad_words=list(ask.banned) or None,
        logit_bias=dict.fromkeys(banned, LOWEST) or None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _place(output: Any, tokens: Tokens) -> Place:
    """Read vLLM's output. Raises: UnsupportedVLLMError if it lacks what was asked."""
    answer = output.outputs[0]
    first = answer.logprobs[0] if answer.logprobs else {}
    if missing := set(tokens) - set(first):
        raise UnsupportedVLLMError(
            f"vLLM gave no log-probability of the tokens {sorted(missing)}"
        )
    # A token that cannot be said at all must not make infinite differences.
    logprobs = {token: max(float(one.logprob), LOWEST) for token, one in first.items()}
    return Place(tuple(answer.token_ids), logprobs)
