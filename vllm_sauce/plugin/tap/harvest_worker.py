# SPDX-License-Identifier: Apache-2.0
"""Put the tap at its sites in a vLLM model, and let the driver ask for what it took.

Switched on by ``additional_config["sauce_harvest"]``, which ``learning.harvest`` sets.
The sites and the seams are those of the edit, so what is harvested is what an edit will
see.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vllm_sauce.activations.shard_writer import ShardWriter
from vllm_sauce.activations.shards import read_index
from vllm_sauce.errors import ConfigError, UnsupportedFeatureError
from vllm_sauce.plugin.sites.action import action_of
from vllm_sauce.plugin.sites.modules import modules_at
from vllm_sauce.plugin.startup import features
from vllm_sauce.plugin.startup.settings import HARVEST_KEY, section_of
from vllm_sauce.plugin.tap.tap import ActivationTap, Finished
from vllm_sauce.plugin.worker.injection import place


class HarvestWorker:
    """vLLM's ``worker_extension_cls``: what the driver asks of a worker."""

    def sauce_harvest_begin(self, folder: str, writer: str, shard_tokens: int) -> None:
        """Write what comes into a folder."""
        done = [name for entry in read_index(Path(folder)) for name in entry.images]
        self._sauce_tap().begin(
            ShardWriter.open(Path(folder), writer, shard_tokens), done
        )

    def sauce_harvest_finish(self, finished: list[tuple[int, int, list[int]]]) -> None:
        """Write finished samples (number, prompt tokens, all tokens' ids)."""
        self._sauce_tap().finish([Finished(*one) for one in finished])

    def sauce_harvest_drop(self, sample: int) -> None:
        """Forget a sample whose request failed."""
        self._sauce_tap().drop(sample)

    def sauce_harvest_flush(self) -> None:
        """Write what is still in memory."""
        writer = self._sauce_tap().writer
        if writer is not None:
            writer.flush()

    def _sauce_tap(self) -> ActivationTap:
        tap = action_of(self.model_runner.model)  # type: ignore[attr-defined]
        if not isinstance(tap, ActivationTap):
            raise ConfigError("this engine does not harvest")
        return tap


def inject_tap(model: nn.Module, vllm_config: Any) -> None:
    """Put a tap at each of the sites of an engine that harvests.

    Raises: UnsupportedFeatureError, UnsupportedVLLMError, ConfigError
    """
    section = section_of(vllm_config, HARVEST_KEY)
    if section is None:
        return
    if section_of(vllm_config) is not None:
        raise ConfigError(
            "an engine either harvests or edits; its activations would be edited "
            "ones: give only one of 'sauce' and 'sauce_harvest'"
        )
    if not isinstance(section, dict) or set(section) != {"dtype", "sites"}:
        raise ConfigError(f"{HARVEST_KEY} must have dtype, sites")
    sites: tuple[str, ...] = tuple(section["sites"])
    features.refuse_unproven(vllm_config, sites=sites)
    for name in ("lora_config", "speculative_config"):
        if getattr(vllm_config, name) is not None:
            raise UnsupportedFeatureError(
                f"a harvest is of the model's own tokens, and {name} is set: leave out "
                "adapters and drafted tokens"
            )
    if vllm_config.parallel_config.world_size > 1:
        raise UnsupportedFeatureError(
            "a harvest takes one device an engine, and as many engines as there are "
            "devices: leave out --tensor-parallel-size and --pipeline-parallel-size"
        )
    if not vllm_config.model_config.enforce_eager:
        raise UnsupportedFeatureError("harvesting needs enforce_eager=True")
    if vllm_config.cache_config.enable_prefix_caching:
        raise UnsupportedFeatureError(
            "harvesting needs enable_prefix_caching=False: cached tokens pass no site"
        )
    dtype: torch.dtype = vllm_config.model_config.dtype
    if section["dtype"] != "auto":
        dtype = getattr(torch, section["dtype"])
    modules = modules_at(model, vllm_config.model_config.hf_config, sites)
    place(model, vllm_config, ActivationTap(sites, dtype), modules)
