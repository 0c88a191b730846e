# SPDX-License-Identifier: Apache-2.0
"""One vLLM that answers under any number of candidate edits, many at the same time.

The candidates are the catalogue of a temporary bundle, so each request carries its own
as a mask and all share batches: what a served edit would do is what is measured.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.client import check_strength, forget
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.data.samples import picture_digest
from vllm_sauce.errors import ConfigError, UnknownConceptError, UnsupportedVLLMError
from vllm_sauce.evaluation.asking.probes import Probe, Reading
from vllm_sauce.evaluation.asking.rendered_prompts import RenderedPrompts
from vllm_sauce.sae import SAEWeights

DOMAIN = "candidates"
MAX_TOKEN_IDS = 128
"""What vLLM gives log-probabilities of for one request."""

LOWEST = -100.0
"""Log-probabilities below are taken as this."""

Edits = Mapping[str, SiteEdit]
Progress = Callable[[int, int], None]
"""Told the probes that are done and all of them."""


class CandidateEngine:
    """Owns the engine and the bundle; ``close`` it, or use it as a context."""

    def __init__(
        self,
        model: str | Path,
        saes: Mapping[str, SAEWeights],
        candidates: Mapping[str, Edits],
        *,
        engine_args: Mapping[str, Any] | None = None,
        window: int = 1024,
        widest: int = 0,
        most: int = 1,
    ) -> None:
        """``candidates``: edits by name; each may act at several sites.

        ``window``: probes given to the engine at a time, which bounds memory.
        ``widest``: latents at a site, and ``most``: candidates, of one probe.

        Raises: ConfigError, BundleError
        """
        if not candidates:
            raise ConfigError("there is no candidate edit to try")
        if window < 1:
            raise ConfigError(f"window must be at least 1, got {window}")
        self.names = frozenset(candidates)
        self.window = window
        self._prompts = RenderedPrompts()
        self._folder = tempfile.TemporaryDirectory(prefix="sauce-candidates-")
        try:
            self._write_bundle(model, saes, candidates)
            alone = max(
                len(edit.latents)
                for edits in candidates.values()
                for edit in edits.values()
            )
            sauce = {
                "bundle": str(self.bundle_dir),
                # Slots are as wide as a mask may be, not as all candidates together.
                "max_latents": max(alone, widest),
                "max_concepts": most,
            }
            self.llm = self._start(str(model), sauce, dict(engine_args or {}))
        except BaseException:
            self._folder.cleanup()
            raise

    def __enter__(self) -> CandidateEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine and remove the bundle."""
        llm, self.llm = getattr(self, "llm", None), None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
        self._folder.cleanup()

    def evaluate(
        self,
        probes: Sequence[Probe],
        progress: Progress = lambda done, total: None,
    ) -> list[Reading]:
        """Return what each probe read, in their order.

        Raises: UnknownConceptError for a candidate this engine does not have
        """
        for probe in probes:
            self._check(probe)
        digests: dict[int, str] = {}
        for probe in probes:
            if probe.picture is not None and id(probe.picture) not in digests:
                digests[id(probe.picture)] = picture_digest(probe.picture)
        # One mask's questions about a picture share its patches and cached blocks.
        order = sorted(
            range(len(probes)),
            key=lambda i: (
                probes[i].candidates,
                probes[i].strength,
                digests.get(id(probes[i].picture), ""),
            ),
        )
        readings: list[Reading | None] = [None] * len(probes)
        progress(0, len(probes))
        for start in range(0, len(order), self.window):
            part = order[start : start + self.window]
            found = self._run([probes[i] for i in part], digests)
            for i, reading in zip(part, found, strict=True):
                readings[i] = reading
            progress(start + len(part), len(probes))
        return [reading for reading in readings if reading is not None]

    def _check(self, probe: Probe) -> None:
        for name in probe.candidates:
            if name not in self.names:
                raise UnknownConceptError(name, known=sorted(self.names))
        check_strength(probe.strength)
        if len(probe.tokens) > MAX_TOKEN_IDS:
            raise ConfigError(
                f"a probe reads at most {MAX_TOKEN_IDS} tokens, got {len(probe.tokens)}"
            )

    def answer_tokens(self, words: Iterable[str]) -> tuple[int, ...]:
        """Return the tokens an answer with one of these words may begin with.

        A word alone, after a blank, and with a capital: templates differ in what
        comes before the answer.

        Raises: ConfigError if the tokenizer knows none of the words
        """
        return answer_tokens(self.llm.get_tokenizer(), words)

    def _write_bundle(
        self,
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
            Concept(name=name, domain=DOMAIN, edits=edits)
            for name, edits in candidates.items()
        ]
        # A site that no candidate edits would cost every token of it time.
        sites = {site: sae for site, sae in saes.items() if site in used}
        bundle = Bundle.build(fingerprint_model(model), sites, Catalogue(concepts))
        bundle.save(self.bundle_dir)

    @property
    def bundle_dir(self) -> Path:
        """The temporary bundle."""
        return Path(self._folder.name) / "bundle"

    def _start(
        self, model: str, sauce: Mapping[str, object], engine_args: dict[str, Any]
    ) -> Any:
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        arguments: dict[str, Any] = {
            "enforce_eager": True,
            "enable_prefix_caching": True,
            # Prompts are prepared once here; vLLM would do it for every candidate.
            "mm_processor_cache_gb": 0,
            **engine_args,
        }
        return LLM(model=model, additional_config={"sauce": sauce}, **arguments)

    def _run(
        self, probes: Sequence[Probe], digests: Mapping[int, str]
    ) -> list[Reading]:
        engine, outputs = self.llm.llm_engine, dict[str, Any]()
        added: list[str] = []
        try:
            for number, probe in enumerate(probes):
                prompt = self._prompts.of(self.llm, probe, digests)
                added.append(engine.add_request(str(number), prompt, _params(probe)))
            while engine.has_unfinished_requests():
                outputs |= {one.request_id: one for one in engine.step()}
        except BaseException:
            engine.abort_request(added, internal=True)
            raise
        return [
            _reading(probe, outputs[str(number)]) for number, probe in enumerate(probes)
        ]


def answer_tokens(tokenizer: Any, words: Iterable[str]) -> tuple[int, ...]:
    """Return the tokens an answer with one of these words may begin with.

    Raises: ConfigError if the tokenizer knows none of the words
    """
    words = list(words)
    found: dict[int, None] = {}
    unknown = getattr(tokenizer, "unk_token_id", None)
    for word in words:
        for form in (word, f" {word}", word.capitalize(), f" {word.capitalize()}"):
            ids = tokenizer.encode(form, add_special_tokens=False)
            # A token that is nothing but a blank begins every answer.
            token = next((t for t in ids if tokenizer.decode([t]).strip()), None)
            if token is not None and token != unknown:
                found[int(token)] = None
    if not found:
        raise ConfigError(f"the model's tokenizer has no token for {', '.join(words)}")
    return tuple(found)


def _params(probe: Probe) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    edited = probe.candidates and probe.strength > 0
    return SamplingParams(
        temperature=0.0,
        max_tokens=probe.max_tokens,
        logprob_token_ids=list(probe.tokens) or None,
        extra_args=(
            forget(*probe.candidates, strength=probe.strength) if edited else None
        ),
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _reading(probe: Probe, output: Any) -> Reading:
    """Read vLLM's output. Raises: UnsupportedVLLMError if it lacks what was asked."""
    answer = output.outputs[0]
    first = answer.logprobs[0] if answer.logprobs else {}
    if missing := set(probe.tokens) - set(first):
        raise UnsupportedVLLMError(
            f"vLLM gave no log-probability of the tokens {sorted(missing)}"
        )
    return Reading(
        # A token that cannot be said at all must not make infinite differences.
        {token: max(float(entry.logprob), LOWEST) for token, entry in first.items()},
        tuple(answer.token_ids),
        answer.text.strip(),
    )
