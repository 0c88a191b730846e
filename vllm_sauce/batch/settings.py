# SPDX-License-Identifier: Apache-2.0
"""What a batch run is told."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vllm_sauce.options import EngineArgs
from vllm_sauce.scale.cluster import Resources


@Parameter(name="*", group="Every row")
@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What holds for every row of a run."""

    forget: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """Concept that every row forgets; repeatable."""

    allow_weak: Annotated[tuple[str, ...], Parameter(show_default=False)] = ()
    """Concept that may be asked for although the bundle says it is not forgotten;
    repeatable."""

    strength: float = 1.0
    """Factor on the catalogue's edits, where a row gives none; 1 is the calibrated
    edit."""

    forget_column: str = "forget"
    """Where a row names what it forgets itself."""

    max_tokens: int = 64
    """Of an answer, unless the row says."""

    temperature: float = 0.0
    """Unless the row says."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class BatchRequest:
    """What is answered, by which model, and where the answers go."""

    source: Annotated[Path, Parameter(name="--in")]
    """Rows: a .jsonl or .parquet file."""

    out: Path
    """The answers: a .parquet file."""

    _: KW_ONLY

    model: str
    """A folder, or a model on the hub."""

    bundle: str | None = None
    """Default: sauce/ in the model's folder."""

    defaults: Defaults = field(default_factory=Defaults)

    engine_args: EngineArgs = field(default_factory=dict)
    """For vLLM, VALUE as JSON; repeatable."""

    resources: Resources | None = None

    # The engine is fed across their borders.
    rows_per_part: int = 128
    """Rows done anew after a crash."""

    overwrite: Annotated[bool, Parameter(negative="")] = False
    """Replace OUT and another run's parts."""
