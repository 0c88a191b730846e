# SPDX-License-Identifier: Apache-2.0
"""What a harvest is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from cyclopts import Parameter

from vllm_sauce.concepts import check_site
from vllm_sauce.errors import ConfigError
from vllm_sauce.options import EngineArgs, Sites, check_at_least, check_choice
from vllm_sauce.scale.cluster import Resources

DTYPES: Final = ("float32", "bfloat16", "float16")
_FIXED = {
    "additional_config",
    "enable_prefix_caching",
    "enforce_eager",
    "model",
    "worker_extension_cls",
}


@Parameter(name="*", group="Harvest")
@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestSettings:
    """How activations are taken and stored."""

    max_tokens: int = 0
    """Tokens the model may write for each sample; their activations are taken too."""

    dtype: Annotated[str | None, Parameter(choices=DTYPES)] = None
    """How rows are stored; default: the model's own."""

    shard_tokens: int = 65_536
    """Tokens of a shard, all sites together."""

    in_flight: int = 256
    """Samples in the engine at the same time: bounds memory."""

    def __post_init__(self) -> None:
        if self.dtype is not None:
            check_choice(self, "dtype", DTYPES)
        check_at_least(self, 0, "max_tokens")
        check_at_least(self, 1, "shard_tokens", "in_flight")

    def to_json(self) -> dict[str, Any]:
        """Return what changes the result; how it is cut into shards does not."""
        return {"max_tokens": self.max_tokens, "dtype": self.dtype}


@Parameter(name="*", group="What the model is shown")
@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSamples:
    """The one source of samples, and what is asked."""

    concepts: Path | None = None
    """concepts.yaml whose examples are shown."""

    split: str | None = None
    """Only its selection, calibration or scoring."""

    pictures: Path | None = None
    """Folder of pictures, instead of concepts."""

    table: Path | None = None
    """JSON lines with pictures, prompts or both."""

    image_column: str | None = None
    """The table's column of pictures."""

    prompt_column: str | None = None
    """The table's column of prompts."""

    texts: Path | None = None
    """File of prompts without pictures, one a line."""

    prompts: Annotated[tuple[str, ...], Parameter(name="--prompt")] = ()
    """Asked about each picture; again for more."""


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestRequest:
    """What is taken, of which model, and where it goes."""

    model: str
    """Folder of the model."""

    out: Path
    """New folder, or one to go on with."""

    sites: Sites
    """vision, `vision.<n>` or `decoder.<i>`; may be given again. All are taken in one
    pass."""

    shown: ShownSamples = field(default_factory=ShownSamples)
    harvest: HarvestSettings = field(default_factory=HarvestSettings)

    engine_args: EngineArgs = field(default_factory=dict)
    """For vllm.LLM, VALUE as JSON; may be given again."""

    resources: Resources | None = None

    def __post_init__(self) -> None:
        check_sites(self.sites)
        if taken := sorted(_FIXED & set(self.engine_args)):
            raise ConfigError(f"harvesting sets {taken[0]} itself; leave it out")


def check_sites(sites: tuple[str, ...]) -> None:
    """Refuse a list of sites that names none, one twice, or one that is none.

    Raises: ConfigError
    """
    if not sites:
        raise ConfigError("name a site: vision or decoder.<i>")
    for site in sites:
        check_site(site)
    if len(set(sites)) != len(sites):
        raise ConfigError(f"name each site once, got {', '.join(sites)}")
