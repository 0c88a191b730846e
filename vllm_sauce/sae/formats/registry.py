# SPDX-License-Identifier: Apache-2.0
"""Which format a checkpoint is in, decided by its content."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from vllm_sauce.errors import BundleCorruptError, ConfigError, UnsupportedSAEError
from vllm_sauce.sae.formats import (
    dictionary_learning,
    gemma_scope,
    llama_scope,
    openai,
    qwen_scope,
    sae_lens,
    sparsify,
)
from vllm_sauce.sae.formats.checkpoint import Checkpoint, read_checkpoint
from vllm_sauce.sae.formats.conversion import Loaded, LoadOptions, check_numbers
from vllm_sauce.sae.weights import SAEWeights


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSAE:
    """A foreign SAE as it will be served."""

    format: str
    """The format it was read from."""

    weights: SAEWeights
    """Equal to the foreign SAE in what it encodes and decodes."""

    folded: tuple[str, ...] = ()
    """What was moved into the weights, in words."""


class Format(Protocol):
    """What each file of this folder offers."""

    LAYOUT: str
    """The layout in one line."""

    def matches(self, checkpoint: Checkpoint) -> bool:
        """Return whether the content is of this format."""

    def load(self, checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
        """Return the SAE and what was folded into it. Raises: SauceError"""


FORMATS: Final[dict[str, Format]] = {
    "dictionary_learning": dictionary_learning,
    "gemma_scope": gemma_scope,
    "llama_scope": llama_scope,
    "openai": openai,
    "qwen_scope": qwen_scope,
    "sae_lens": sae_lens,
    "sparsify": sparsify,
}
"""Every known format by name."""


def load_foreign(
    path: str | Path, *, format: str | None = None, options: LoadOptions | None = None
) -> ForeignSAE:
    """Read a foreign SAE; ``format`` skips detection.

    Raises: ConfigError, BundleNotFoundError, BundleCorruptError, UnsupportedSAEError
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"a format is one of {', '.join(FORMATS)}, got {format!r}")
    checkpoint = read_checkpoint(path)
    check_numbers(checkpoint)
    name, options = format or format_of(checkpoint), options or LoadOptions()
    if options.factor_folded and FORMATS[name] is not sae_lens:
        raise ConfigError(f"--factor-folded is of SAELens' files, this is {name}'s")
    weights, folded = FORMATS[name].load(checkpoint, options)
    if not weights.finite():
        raise BundleCorruptError(
            f"{checkpoint.path}: folding gave NaN or infinity; the numbers are damaged"
        )
    return ForeignSAE(format=name, weights=weights, folded=folded)


def format_of(checkpoint: Checkpoint) -> str:
    """Return the name of the format that a checkpoint's content is in.

    Raises: UnsupportedSAEError
    """
    found = [name for name, entry in FORMATS.items() if entry.matches(checkpoint)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UnsupportedSAEError(
            f"this may be {' or '.join(found)}; say which with --format. "
            f"{checkpoint.describe()}"
        )
    known = "; ".join(f"{name} ({entry.LAYOUT})" for name, entry in FORMATS.items())
    raise UnsupportedSAEError(
        f"unknown format. {checkpoint.describe()}. Known formats: {known}"
    )
