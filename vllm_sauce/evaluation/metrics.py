# SPDX-License-Identifier: Apache-2.0
"""Scores of forgetting one concept, as SAUCE (arXiv:2503.14530) names them.

For a target concept c, on pictures used for nothing else:

- **UAg**: share of generated answers on pictures with c (naming its domain, and
  describing the picture) that no longer mention c.
- **UAd**: share of yes/no questions "is there a c?" on pictures with c that are
  answered "no".
- **IRA**: accuracy on the other concepts of c's domain, on pictures without c: naming,
  and yes/no questions balanced between both answers.
- **CRA**: accuracy on the other domains: naming and balanced yes/no, half on pictures
  with c and half on pictures without it.
- **HM**: harmonic mean of the four.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vllm_sauce.errors import ConfigError

NAMES = ("UAg", "UAd", "IRA", "CRA")


def harmonic_mean(values: Iterable[float]) -> float:
    """Return the harmonic mean of shares; 0 when one of them is 0.

    Raises: ConfigError if there is none or one is negative
    """
    shares = list(values)
    if not shares or min(shares) < 0:
        raise ConfigError(f"a harmonic mean needs shares of at least 0, got {shares}")
    if min(shares) == 0:
        return 0.0
    return len(shares) / sum(1 / share for share in shares)


@dataclass(frozen=True, slots=True)
class Scores:
    """The four scores of one concept, shares in 0..1."""

    UAg: float
    UAd: float
    IRA: float
    CRA: float

    @property
    def HM(self) -> float:
        """Harmonic mean of the four."""
        return harmonic_mean((self.UAg, self.UAd, self.IRA, self.CRA))

    @property
    def weakest(self) -> float:
        """The smallest of the four."""
        return min(self.UAg, self.UAd, self.IRA, self.CRA)

    def to_json(self) -> dict[str, float]:
        """Return the scores rounded to four digits, HM computed before rounding."""
        values = {name: getattr(self, name) for name in (*NAMES, "HM")}
        return {name: round(value, 4) for name, value in values.items()}


@dataclass(slots=True)
class Share:
    """A share that grows answer by answer; values between 0 and 1 are allowed."""

    hits: float = 0.0
    total: int = 0

    def add(self, hit: float) -> None:
        """Count one answer."""
        self.hits += hit
        self.total += 1

    @property
    def value(self) -> float:
        """The share so far.

        Raises: ConfigError if nothing was counted
        """
        if not self.total:
            raise ConfigError("a score without a single question")
        return self.hits / self.total


def mean_share(shares: Iterable[Share]) -> float:
    """Return the mean of the shares that counted anything, each with equal weight.

    Raises: ConfigError if none did
    """
    values = [share.value for share in shares if share.total]
    if not values:
        raise ConfigError("a score without a single question")
    return sum(values) / len(values)
