# SPDX-License-Identifier: Apache-2.0
"""Edits as tensors, applied to whole batches; the definition is the op's reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.concepts import (
    IMAGE,
    OF_TEXT,
    SINK,
    SPARING,
    TOKENS,
    SiteEdit,
    is_vision,
)
from vllm_sauce.errors import UnsupportedFeatureError, UnsupportedSAEError
from vllm_sauce.models.site_hooks import SiteFn
from vllm_sauce.sae import SAEWeights, fold_b_dec, reconstruct


@dataclass(frozen=True, slots=True)
class EditTensors:
    """The rows of an SAE that one edit needs; k latents."""

    W_enc: Tensor
    """[d_model, k]"""
    W_dec: Tensor
    """[k, d_model]"""
    b_enc: Tensor
    """[k], with b_dec folded in"""
    scale: Tensor
    """gamma - 1, [k]"""
    shift: Tensor
    """[k]"""
    gate: Tensor
    """max(SAE's threshold, edit's gate), [k]"""
    sparing: bool = False
    """Whether position 0 is left alone; ``sparing_sink`` does it."""
    only: tuple[str, ...] = ()
    """Kinds of tokens, if not all but the sink are edited; ``sparing_sink`` does it."""

    @classmethod
    def build(
        cls, sae: SAEWeights, edit: SiteEdit, strength: float = 1.0
    ) -> EditTensors:
        """Return the tensors of an edit at a strength."""
        if sae.k is not None or sae.normalize_activations != "none":
            raise UnsupportedSAEError(
                "batched edits know no TopK and no normalised inputs yet; use "
                "vllm_sauce.sae.reconstruct or the served op"
            )
        rows = torch.tensor(edit.latents)
        b_enc = sae.b_enc.float()
        if sae.apply_b_dec_to_input:
            b_enc = fold_b_dec(sae.W_enc, sae.b_enc, sae.b_dec)
        gate = torch.tensor(edit.gate)
        if sae.threshold is not None:
            gate = torch.maximum(gate, sae.threshold.float()[rows])
        return cls(
            W_enc=sae.W_enc[:, rows].float().contiguous(),
            W_dec=sae.W_dec[rows].float().contiguous(),
            b_enc=b_enc[rows],
            scale=strength * (torch.tensor(edit.gamma) - 1),
            shift=strength * torch.tensor(edit.shift),
            gate=gate,
        )

    def fires(self, x: Tensor) -> Tensor:
        """Return which tokens the edit changes.

        Shapes: x [..., d_model] -> [...] bool
        """
        return (x.float() @ self.W_enc + self.b_enc > self.gate).any(-1)

    def to(self, device: torch.device) -> EditTensors:
        """Return the edit with its tensors on a device."""
        moved: dict[str, Any] = {
            one.name: value.to(device)
            for one in fields(self)
            if isinstance(value := getattr(self, one.name), Tensor)
        }
        return replace(self, **moved)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the edited activations. Shapes: x [..., d_model] -> [..., d_model]"""
        hidden_pre = x.float() @ self.W_enc + self.b_enc
        change = (self.scale * hidden_pre + self.shift) * (hidden_pre > self.gate)
        return (x.float() + change @ self.W_dec).to(x.dtype)


ENCODED_ROWS = 1024
"""Tokens that are encoded whole at once, for SAEs that need it."""


@dataclass(frozen=True, slots=True)
class WholeEdit:
    """An edit of an SAE whose latents must all be computed (TopK, normalised)."""

    sae: SAEWeights
    edit: SiteEdit
    sparing: bool = False
    only: tuple[str, ...] = ()
    """As those of ``EditTensors``."""

    def fires(self, x: Tensor) -> Tensor:
        """Say of every token that it may change.

        Shapes: x [..., d_model] -> [...] bool
        """
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the edited activations. Shapes: x [..., d_model] -> [..., d_model]"""
        rows = x.flatten(0, -2).split(ENCODED_ROWS)
        edited = torch.cat([reconstruct(self.sae, part, self.edit) for part in rows])
        return edited.view(x.shape).to(x.dtype)


SiteAction = EditTensors | WholeEdit
"""What is done at a site, and to which tokens."""


def at_strength(edit: SiteEdit, strength: float) -> SiteEdit:
    """Return the edit whose full strength is this one's ``strength``."""
    return replace(
        edit,
        gamma=tuple(1 + strength * (gamma - 1) for gamma in edit.gamma),
        shift=tuple(strength * shift for shift in edit.shift),
    )


def sparing_sink(
    action: SiteAction, first: Tensor | None = None, image: Tensor | None = None
) -> SiteFn:
    """Return an action that leaves alone what its edit spares: position 0, kinds.

    ``first``: where each prompt begins in a batch padded on the left; default: at 0. A
    pass of one token is a step after the prompt. ``image``: which tokens are a
    picture's, for an edit of those, or of the others, alone.

    Shapes: first [batch], image [batch, T] bool; the function takes x [batch, T,
        d_model]
    """
    if not action.sparing:
        return action
    assert image is not None or not action.only, "whose tokens are not known"

    def edit(x: Tensor) -> Tensor:
        edited = action(x)
        if action.only and image is not None:
            mine = image if action.only == (IMAGE,) else ~image
            edited = torch.where(mine.to(x.device)[..., None], edited, x)
        if x.shape[1] == 1:
            return edited
        rows = torch.arange(len(x), device=x.device)
        at = torch.zeros_like(rows) if first is None else first.to(x.device)
        edited = edited.clone()
        edited[rows, at] = x[rows, at]
        return edited

    return edit


def site_actions(
    saes: Mapping[str, SAEWeights],
    edits: Mapping[str, SiteEdit],
    strength: float,
    device: torch.device | None = None,
) -> dict[str, SiteAction]:
    """Return what edits do at each site; nothing at strength 0.

    Raises: UnsupportedFeatureError for an edit of other tokens than all, all but the
        sink, a picture's or those of text
    """
    device = device or torch.device("cpu")
    found: dict[str, SiteAction] = {}
    for site, edit in edits.items() if strength else ():
        sae = saes[site]
        sparing = not is_vision(site) and SINK not in edit.tokens
        everywhere = is_vision(site) or edit.tokens in (TOKENS, SPARING)
        kinds = () if everywhere else edit.tokens
        if kinds not in ((), (IMAGE,), OF_TEXT):
            raise UnsupportedFeatureError(
                "transformers is asked about edits of all tokens, of all but the sink, "
                f"of a picture's or of text; the edit at {site} is of "
                f"{', '.join(edit.tokens)}: ask vLLM"
            )
        action: SiteAction = (
            EditTensors.build(sae, edit, strength).to(device)
            if sae.k is None and sae.normalize_activations == "none"
            else WholeEdit(sae.to(device), at_strength(edit, strength))
        )
        found[site] = replace(action, sparing=sparing, only=kinds)
    return found
