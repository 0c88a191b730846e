# SPDX-License-Identifier: Apache-2.0
"""Edits as tensors, applied to whole batches; the definition is the op's reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vllm_sauce.concepts import Concept, SiteEdit
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.models.site_hooks import SiteFn
from vllm_sauce.sae import SAEWeights, fold_b_dec, reconstruct
from vllm_sauce.unlearning.fp8 import rounded_rows

ENCODED_ROWS = 1024
"""Tokens that are encoded whole at once, for SAEs that need it."""


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

    @classmethod
    def build(
        cls,
        sae: SAEWeights,
        edit: SiteEdit,
        strength: float = 1.0,
        *,
        fp8: bool = False,
    ) -> EditTensors:
        """Return the tensors of an edit at a strength, rows as fp8 would hold them."""
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
        kept = rounded_rows if fp8 else Tensor.float
        return cls(
            W_enc=kept(sae.W_enc[:, rows].T).T.contiguous(),
            W_dec=kept(sae.W_dec[rows]).contiguous(),
            b_enc=b_enc[rows],
            scale=strength * (torch.tensor(edit.gamma) - 1),
            shift=strength * torch.tensor(edit.shift),
            gate=gate,
        )

    def to(self, device: torch.device) -> EditTensors:
        """Return the tensors on a device."""
        return EditTensors(
            **{item.name: getattr(self, item.name).to(device) for item in fields(self)}
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return the edited activations.

        Shapes: x [..., d_model] -> [..., d_model]
        """
        hidden_pre = x @ self.W_enc + self.b_enc
        change = (self.scale * hidden_pre + self.shift) * (hidden_pre > self.gate)
        return x + change @ self.W_dec


def at_strength(edit: SiteEdit, strength: float) -> SiteEdit:
    """Return the edit whose full strength is this one's ``strength``."""
    return replace(
        edit,
        gamma=tuple(1 + strength * (gamma - 1) for gamma in edit.gamma),
        shift=tuple(strength * shift for shift in edit.shift),
    )


def edit_fns(
    saes: Mapping[str, SAEWeights],
    concept: Concept,
    strength: float,
    device: torch.device | None = None,
) -> dict[str, SiteFn]:
    """Return what forgetting a concept does at each site; nothing at strength 0."""
    if strength == 0:
        return {}
    return {
        site: _edit_fn(saes[site], edit, strength, device or torch.device("cpu"))
        for site, edit in concept.edits.items()
    }


def _edit_fn(
    sae: SAEWeights, edit: SiteEdit, strength: float, device: torch.device
) -> SiteFn:
    if sae.k is None and sae.normalize_activations == "none":
        tensors = EditTensors.build(sae, edit, strength).to(device)
        return lambda x: tensors(x.float()).to(x.dtype)
    whole = sae.to(device)
    scaled = at_strength(edit, strength)

    def full(x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).split(ENCODED_ROWS)
        edited = torch.cat([reconstruct(whole, part, scaled) for part in rows])
        return edited.view(x.shape).to(x.dtype)

    return full
