# SPDX-License-Identifier: Apache-2.0
"""What a measurement is told."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from vllm_sauce.errors import ConfigError
from vllm_sauce.options import EngineArgs, NamedBundles, check_at_least

PLAIN, OURS, PROMPT, BAN, BOTH = "plain", "ours", "prompt", "ban", "both"
TOGETHER = (5, 10, 20, 40)
METHODS = (OURS, PROMPT, BAN, BOTH)
"""The bundle's edits; asking the model not to mention it; keeping the sampler from the
word; the bundle's edits and that."""


@Parameter(name="*", group="How much is asked")
@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSettings:
    """What is asked, and how much of it."""

    methods: Annotated[tuple[str, ...], Parameter(name="--method", choices=METHODS)] = (
        *(OURS, PROMPT, BAN),
    )
    """ours: the bundle's edits; prompt: the question asks not to mention it; ban: the
    sampler may not write the word; both: edits and ban. May be given again."""

    positives: int = 40
    """Examples with a concept, at most."""

    negatives: int = 40
    """Examples without it, at most."""

    watched: int = 4
    """Examples on which every other concept is named, for the one that loses most."""

    eliminated: int = 4
    """Pictures with a concept, and without it, on which every other concept of its
    domain is asked for: whether no to all of them gives it away."""

    together: Annotated[
        tuple[int, ...] | None, Parameter(name="--together", show_default=False)
    ] = None
    """So many concepts are forgotten at once; may be given again. Default: 5, 10, 20,
    40, as far as there are so many."""

    sets: int = 3
    """Random sets of each size."""

    set_examples: int = 60
    """Examples that each set is asked about."""

    answer_tokens: Annotated[int, Parameter(name="--asked-tokens")] = 16
    """Tokens of a written answer, at most."""

    seed: int = 0
    """Of the examples and sets that are drawn."""

    def __post_init__(self) -> None:
        if wrong := sorted(set(self.methods) - set(METHODS)):
            raise ConfigError(
                f"a method is one of {', '.join(METHODS)}, got {wrong[0]!r}"
            )
        names = ("positives", "negatives", "sets", "set_examples", "answer_tokens")
        check_at_least(self, 1, *names)
        check_at_least(self, 0, "watched", "eliminated")
        if self.together and min(self.together) < 2:
            raise ConfigError(f"together is at least 2, got {min(self.together)}")


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class EvalRequest:
    """Which bundle is measured, on what, and where the results go."""

    bundle: Path
    """The bundle's folder."""

    _: KW_ONLY

    model: str
    """The model's folder; with --url the name that its server has for it."""

    concepts: Path
    """concepts.yaml."""

    out: Path
    """Folder of the results; run again to go on."""

    beside: NamedBundles = field(default_factory=dict)
    """Other bundles of the same concepts, as the simple edits of ``sauce fit
    --baseline``, asked the same and shown by this name; may be given again."""

    url: str | None = None
    """Address of a server with this bundle, as http://localhost:8000/v1; without one an
    engine is started here."""

    names: Annotated[tuple[str, ...], Parameter(name="--concept")] = ()
    """Only this concept; again for more. Default: all that the bundle and the file
    have."""

    split: str = "scoring"
    """Examples that are used."""

    record: Annotated[bool, Parameter(negative="")] = False
    """Write the scores into the bundle: of each concept alone, and of many at once; a
    server's start says for how many that is known. A concept below the floor that it
    was calibrated with is not offered any more (status 3). The bundle's digest is
    another then."""

    settings: EvalSettings = field(default_factory=EvalSettings)

    engine_args: EngineArgs = field(default_factory=dict)
    """For vllm.LLM, VALUE as JSON; may be given again. The engine is eager unless told
    otherwise: measure as you serve."""

    def __post_init__(self) -> None:
        if wrong := sorted({*self.beside} & {PLAIN, *METHODS}):
            raise ConfigError(
                f"{wrong[0]!r} is a method; give that bundle another name"
            )
        if self.beside and self.url is not None:
            raise ConfigError("a server has one bundle: give --url or --beside")
        if self.record and (self.names or self.settings.together == ()):
            raise ConfigError(
                "--record is of all the bundle's concepts and of sets of them: give it "
                "neither --concept nor an empty --together"
            )
        if self.record and self.url is not None:
            raise ConfigError(
                "--record is of an engine started here: a server does not prove "
                "which bundle it has"
            )
        if self.record and OURS not in self.settings.methods:
            raise ConfigError(f"--record is of the bundle's edits: add --method {OURS}")

    @property
    def methods(self) -> tuple[str, ...]:
        """What is asked beside the unedited model, in the order it is shown."""
        return (*self.settings.methods, *self.beside)

    def to_json(self) -> dict[str, Any]:
        """Return what changes the answers; how much is asked of them does not."""
        return {
            "answer_tokens": self.settings.answer_tokens,
            "engine_args": self.engine_args,
            "url": self.url,
        }
