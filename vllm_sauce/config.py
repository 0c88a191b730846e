# SPDX-License-Identifier: Apache-2.0
"""What an operator sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from vllm_sauce.errors import ConfigError

_NAMES = ("forget", "allow_weak")
"""Settings that are names of concepts: lists where they travel as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SauceConfig:
    """Settings of a server; travels as JSON in vLLM's ``additional_config``."""

    bundle: str
    """Path of the bundle folder."""

    forget: tuple[str, ...] = ()
    """Concepts every request forgets, whatever it asks for."""

    max_latents: int = 4096
    """Most latents one mask may edit at one site."""

    max_concepts: int = 64
    """Most concepts one mask may hold."""

    pool_dtype: str = "auto"
    """Resident rows: ``auto`` is the model's dtype, ``fp8`` e4m3 with a scale a row."""

    approximate: str | None = None
    """``relu`` lets a TopK SAE's masked latents count wherever they are positive."""

    require_decoder: bool = False
    """Refuse concepts that no decoder site edits: text alone goes around the others."""

    allow_weak: tuple[str, ...] = ()
    """Concepts that are served though the bundle says they are not forgotten."""

    allow_quantized: bool = False
    """Serve the model quantised, though the bundle is of its own weights."""

    def __post_init__(self) -> None:
        _check_str("bundle", self.bundle)
        for field in _NAMES:
            names = getattr(self, field)
            if not isinstance(names, tuple):
                raise ConfigError(f"{field} must be a tuple of names, got {names!r}")
            for name in names:
                _check_str(field, name)
        _check_positive("max_latents", self.max_latents)
        _check_positive("max_concepts", self.max_concepts)
        _check_choice("pool_dtype", self.pool_dtype, ("auto", "fp8"))
        _check_choice("approximate", self.approximate, (None, "relu"))
        for field in ("require_decoder", "allow_quantized"):
            if not isinstance(value := getattr(self, field), bool):
                raise ConfigError(f"{field} must be true or false, got {value!r}")

    @classmethod
    def from_mapping(cls, data: Mapping[str, object]) -> SauceConfig:
        """Read a config from JSON-like data.

        Raises: ConfigError
        """
        if not isinstance(data, Mapping):
            raise ConfigError(f"sauce config must be a mapping, got {data!r}")
        known = [field.name for field in fields(cls)]
        unknown = sorted(str(key) for key in data if key not in known)
        if unknown:
            raise ConfigError(
                f"unknown sauce setting {', '.join(unknown)}; known: {', '.join(known)}"
            )
        if "bundle" not in data:
            raise ConfigError("sauce config needs 'bundle', the path of a bundle")
        values = dict(data)
        for name in _NAMES:
            if isinstance(given := values.get(name), list):
                values[name] = tuple(given)
        return cls(**values)  # type: ignore[arg-type]

    def to_mapping(self) -> dict[str, object]:
        """Return the JSON-able form that ``from_mapping`` reads."""
        return asdict(self) | {name: list(getattr(self, name)) for name in _NAMES}


def _check_str(field: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{field} must be non-empty text, got {value!r}")


def _check_choice(field: str, value: object, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        names = " or ".join(repr(choice) for choice in choices)
        raise ConfigError(f"{field} must be {names}, got {value!r}")


def _check_positive(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{field} must be a positive integer, got {value!r}")
