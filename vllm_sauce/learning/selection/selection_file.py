# SPDX-License-Identifier: Apache-2.0
"""selection.json: each concept's latents, best first, with every score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_sauce.bundle.schema import ModelFingerprint
from vllm_sauce.errors import ConfigError, LearnError
from vllm_sauce.files import write_whole

_Number = Annotated[float, Field(allow_inf_nan=False)]

QUIET_LEVELS = (0.9, 0.95, 0.99, 0.999)
"""Shares of the tokens without a concept that gates are measured at."""


FILE = "file"
"""The ranking of the selection's own score."""


def level_name(share: float) -> str:
    """Return how a share is written in the file."""
    return f"{share:g}"


_ROW = "row:"


def row_ranking(kind: str) -> str:
    """Return the name under which a concept's row is ranked: it alone is."""
    return f"{_ROW}{kind}"


def ranks_row(ranking: str) -> bool:
    """Say whether a ranking chooses a row."""
    return ranking.startswith(_ROW)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Causal(_Strict):
    """What removing the latent does to log-probabilities; see CausalScore."""

    on_concept: _Number
    on_others: _Number


class RankedLatent(_Strict):
    """One latent; a score is null where its rule does not choose the latent."""

    latent: Annotated[int, Field(ge=0)]
    scores: dict[str, _Number | None]
    """share, saeuron, crisp, dsg, rate; attribution where it was asked for."""
    causal: Causal | None = None
    """Null if it was not measured."""
    mean_acts: tuple[_Number, _Number]
    """Mean activation with the concept and without."""
    firing_rate: tuple[_Number, _Number]
    """Share of tokens with the concept and without."""
    max_acts: tuple[_Number, _Number]
    """Largest activation with the concept and without."""
    quiet: dict[str, _Number] = {}
    """By share, as ``level_name`` writes it: the activation that so many of the tokens
    without the concept stay at or below."""


class SelectedConcept(_Strict):
    """One concept's latents."""

    domain: str
    num_samples: tuple[int, int]
    """Harvested samples with the concept and without."""
    latents: list[RankedLatent]
    """Best first by the file's score."""
    rows: list[RankedLatent] = []
    """Those fitted for it, if the SAE has rows: each is its ranking's only one."""


class SelectionFile(_Strict):
    """All of selection.json."""

    format: Literal["vllm-sauce-selection"] = "vllm-sauce-selection"
    version: Literal[1] = 1
    fingerprint: ModelFingerprint
    """The model that was harvested."""
    site: str
    d_sae: int
    split: str
    score: str
    """What ranks the latents."""
    k: int
    roles: list[str]
    """Tokens that were counted."""
    concepts: dict[str, SelectedConcept]

    @classmethod
    def read(cls, path: str | Path) -> SelectionFile:
        """Read and check a file.

        Raises: ConfigError
        """
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error}") from error
        except ValidationError as error:
            raise ConfigError(f"{path} is no selection.json: {error}") from error

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all.

        Raises: LearnError, for example if the disk is full
        """
        text = self.model_dump_json(indent=1) + "\n"
        write_whole(Path(path), text.encode(), LearnError)
