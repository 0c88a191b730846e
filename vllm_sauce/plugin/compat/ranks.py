# SPDX-License-Identifier: Apache-2.0
"""The ranks of an engine: stages of a pipeline, each of tensor-parallel ranks.

Those of a stage run the same passes together: one that raises while the others go into
a collective leaves them there. So whatever a rank finds wrong is voted on first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vllm_sauce.errors import CanaryError


def _group(name: str) -> Any:
    """Return vLLM's group of this rank, None where there is one rank alone."""
    from vllm.distributed import parallel_state

    if not parallel_state.model_parallel_is_initialized():
        return None
    group = getattr(parallel_state, f"get_{name}_group")()
    return group if group.world_size > 1 else None


def is_first_stage() -> bool:
    """Say whether this rank embeds tokens and pictures."""
    group = _group("pp")
    return group is None or bool(group.is_first_rank)


def is_last_stage() -> bool:
    """Say whether what this rank leaves is the model's output."""
    group = _group("pp")
    return group is None or bool(group.is_last_rank)


def is_elsewhere(layer: Any) -> bool:
    """Say whether a layer is a place-holder: another stage has it."""
    from vllm.model_executor.models.utils import PPMissingLayer

    return isinstance(layer, PPMissingLayer)


@contextmanager
def together(*, stages: bool = False) -> Iterator[None]:
    """Raise on every rank of a stage, or of all, what the block raises on one.

    All of them must come here, and the block must hold no collective of theirs.

    Raises: what the block raised, or CanaryError with another rank's words
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    for name in ("tp", "pp") if stages else ("tp",):
        error = _worst(_group(name), error)
    if error is not None:
        raise error


def _worst(group: Any, error: Exception | None) -> Exception | None:
    if group is None:
        return error
    said = all_gathered(group, None if error is None else str(error))
    for rank, one in enumerate(said):
        if error is None and one is not None:
            error = CanaryError(f"rank {group.ranks[rank]}: {one}")
    return error


def all_gathered(group: Any, value: Any) -> list[Any]:
    """Return what each rank of a group gives, in their order."""
    import torch.distributed

    found: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(found, value, group=group.cpu_group)
    return found


def of_all_ranks(value: Any) -> list[Any]:
    """Return what each tensor-parallel rank of this stage gives, in their order."""
    group = _group("tp")
    return [value] if group is None else all_gathered(group, value)
