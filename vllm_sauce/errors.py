# SPDX-License-Identifier: Apache-2.0
"""Every exception vllm-sauce raises for something a user can cause.

SauceError
├── RequestError (ValueError)     one request is wrong; HTTP 400
│   ├── UnknownConceptError
│   ├── TooManyConceptsError
│   ├── InvalidStrengthError
│   └── InvalidRequestError
├── ConfigError (ValueError)      the operator's settings are wrong
├── BundleError                   the bundle cannot be used
│   ├── BundleNotFoundError
│   ├── BundleCorruptError
│   ├── BundleMismatchError
│   ├── ReconstructionError
│   └── UnsupportedSAEError
├── ActivationsError              harvested activations cannot be used or written
│   └── PictureError              a picture that cannot be read; its sample fails alone
├── TrainingError                 an SAE's training cannot go on, or its result be kept
├── BatchError                    a batch run, or work on actors, that cannot go on
├── LearnError                    a stage of sauce learn that failed
├── UnsupportedVLLMError          this vLLM version has not the seams we need
├── UnsupportedFeatureError       a vLLM feature that would break unlearning
└── CanaryError                   the edit did not run where it must
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable

_LONGEST_NAME = 64


class SauceError(Exception):
    """Base of every error vllm-sauce raises on purpose."""


class RequestError(SauceError, ValueError):
    """A request that cannot be served as asked; maps to HTTP 400."""


class UnknownConceptError(RequestError):
    """A request names a concept the bundle's catalogue does not have."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(known)
        self.suggestions = nearest_names(name, self.known)
        hint = (
            f"did you mean {', '.join(map(repr, self.suggestions))}?"
            if self.suggestions
            else f"the catalogue has {len(self.known)} concepts; name one of them"
        )
        super().__init__(f"unknown concept {_shorten(name)!r}: {hint}")

    def __reduce__(self) -> tuple[type[UnknownConceptError], tuple[object, ...]]:
        # The default passes the message where __init__ wants (name, known); errors
        # cross process borders in vLLM.
        return type(self), (self.name, self.known)


class TooManyConceptsError(RequestError):
    """A mask needs more concepts or latents than the server allows."""


class InvalidStrengthError(RequestError):
    """A strength that is no finite number in the allowed range."""


class InvalidRequestError(RequestError):
    """An unknown sauce key, or a value of the wrong type."""


class ConfigError(SauceError, ValueError):
    """A setting, policy or edit that makes no sense."""


class BundleError(SauceError):
    """A bundle that cannot be used."""


class BundleNotFoundError(BundleError):
    """No bundle at this path, or one of its files is missing."""


class BundleCorruptError(BundleError):
    """A bundle whose content is damaged or breaks the format."""


class BundleMismatchError(BundleError):
    """A bundle that belongs to another model."""


class ReconstructionError(BundleError):
    """An SAE that does not reconstruct the model's activations at its site."""


class UnsupportedSAEError(BundleError):
    """A sparse autoencoder of a kind that cannot be served exactly."""


class ActivationsError(SauceError):
    """A folder of activations that is damaged, foreign, or cannot be written."""


class PictureError(ActivationsError):
    """A picture that is there but cannot be shown; its sample or row fails alone."""


class TrainingError(SauceError):
    """A training that diverged, or whose files are damaged or cannot be written."""


class BatchError(SauceError):
    """A batch run, or work on Ray's actors, that cannot go on; what is done is kept."""


class ActorDiedError(BatchError):
    """What an actor holds is dead; the work may be done by a new one."""


class LearnError(SauceError):
    """A stage of ``sauce learn`` that failed; what is finished is kept."""


class UnsupportedVLLMError(SauceError):
    """A vLLM version without the seams the plugin needs."""


class UnsupportedFeatureError(SauceError):
    """A vLLM feature under which unlearning would not hold."""


class CanaryError(SauceError):
    """The start-up proof that the edit runs has failed."""


def warn(message: str) -> None:
    """Tell of what was left out and could have been meant; work goes on.

    A logging configuration that names other loggers only, as one for vLLM may, switches
    off all it finds: this one is switched on again. Its level and handlers hold.
    """
    logger = logging.getLogger("vllm_sauce")
    logger.disabled = False
    logger.warning(message)


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> tuple[str, ...]:
    """Return up to ``count`` known names most like ``name``, best first."""
    # difflib is quadratic: a request must not buy time with a huge name.
    wanted = name[: _LONGEST_NAME * 2].strip().casefold()
    spellings: dict[str, list[str]] = {}
    for candidate in known:
        spellings.setdefault(candidate.casefold(), []).append(candidate)
    close = difflib.get_close_matches(wanted, spellings, n=count)
    return tuple(hit for key in close for hit in sorted(spellings[key]))[:count]


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME] + "..."
