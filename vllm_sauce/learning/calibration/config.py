# SPDX-License-Identifier: Apache-2.0
"""What a calibration tries, and what counts as best."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_sauce.errors import ConfigError

PREFERENCES = ("forgetting", "balance")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationConfig:
    """What is tried, on how many examples, and what counts as best."""

    k: tuple[int, ...] = (4, 8, 16, 32, 64)
    actions: tuple[str, ...] = (
        *("scale 0", "scale -0.5", "scale -1", "scale -2", "scale -4", "scale -8"),
        *("scale -16", "clamp 0.5", "clamp 1", "clamp 2"),
    )
    """ "scale G": gamma. "clamp C": to -C times the largest activation seen with the
    concept."""
    gates: tuple[float, ...] = (0.0, 0.99, 0.999)
    """Shares of the tokens without the concept that the edit leaves alone."""
    rankings: tuple[str, ...] = ()
    """Scores that latents are ranked by; none means all of the selection, and "file"
    its own."""
    retain_floor: float = 0.02
    """What IRA and CRA may lose each."""
    worst_floor: float = 0.35
    """What any single other concept may lose of being named right."""
    prefer: str = "forgetting"
    """What is best among settings that keep to both floors: "forgetting" (of UAg and
    UAd), or "balance" (the harmonic mean of all four)."""
    positives: int = 48
    negatives: int = 24
    """Examples with and without the concept at most."""
    watched: int = 4
    """Examples of every other concept at most."""
    screen: float = 0.25
    """Share of the questions that the search itself asks; it names no watched concept.
    """
    finalists: int = 6
    """Settings that are asked all questions; twice as many are asked half of them."""
    soft: float = 0.5
    """Weight of probabilities in what the search maximises; the rest is right/wrong."""
    passes: int = 2
    """How often the search goes through its coordinates at most."""
    prune: bool = True
    """Whether latents that the chosen edit does not need are dropped."""
    answer_tokens: int = 8
    """Tokens of a written answer."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("retain_floor", "worst_floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share, got {getattr(self, name)}")
        if self.prefer not in PREFERENCES:
            raise ConfigError(
                f"prefer is one of {', '.join(PREFERENCES)}, got {self.prefer!r}"
            )
        if self.watched < 0:
            raise ConfigError(f"watched must be at least 0, got {self.watched}")
        if not 0 < self.screen <= 1 or not 0 <= self.soft <= 1:
            raise ConfigError("screen lies in (0, 1], soft in [0, 1]")
        if min(self.positives, self.negatives, self.finalists, self.passes) < 1:
            raise ConfigError("positives, negatives, finalists, passes: at least 1")
