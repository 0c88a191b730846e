# SPDX-License-Identifier: Apache-2.0
"""How an engine runs where a concept was measured, and where it is served."""

from __future__ import annotations

from typing import Any

from vllm_sauce.concepts.catalogue import Catalogue

MEASURED_AS = "measured_as"
"""Key of a concept's provenance."""


def engine_mode(vllm_config: Any) -> dict[str, object]:
    """Return what rounding depends on: types, quantisation, whether it is compiled."""
    model = vllm_config.model_config
    mode: dict[str, object] = {
        "dtype": str(model.dtype).removeprefix("torch."),
        "eager": bool(model.enforce_eager),
    }
    if model.quantization is not None:
        mode["quantization"] = str(model.quantization)
    if (kept := vllm_config.cache_config.cache_dtype) not in ("auto", mode["dtype"]):
        mode["kv_cache"] = str(kept)
    return mode


def measured_otherwise(catalogue: Catalogue, served: dict[str, object]) -> list[str]:
    """Say how concepts were measured that are served in another way, each way once."""
    modes = (concept.provenance.get(MEASURED_AS) for concept in catalogue.values())
    others = (mode for mode in modes if isinstance(mode, dict) and mode != served)
    return sorted(set(map(shown, others)))


def shown(mode: dict[str, object]) -> str:
    """Return a mode in words."""
    parts = [str(mode.get("dtype")), "eager" if mode.get("eager") else "compiled"]
    parts += [f"{k} {mode[k]}" for k in ("quantization", "kv_cache") if k in mode]
    return ", ".join(parts)
