# SPDX-License-Identifier: Apache-2.0
"""Edits as tensors, applied to whole batches; the definition is the op's reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_sauce.concepts import SiteEdit
from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae import SAEWeights, fold_b_dec
from vllm_sauce.unlearning.fp8 import rounded_rows


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

    def fires(self, x: Tensor) -> Tensor:
        """Return which tokens the edit changes.

        Shapes: x [..., d_model] -> [...] bool
        """
        return (x @ self.W_enc + self.b_enc > self.gate).any(-1)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the edited activations.

        Shapes: x [..., d_model] -> [..., d_model]
        """
        hidden_pre = x @ self.W_enc + self.b_enc
        change = (self.scale * hidden_pre + self.shift) * (hidden_pre > self.gate)
        return x + change @ self.W_dec


def build_edits(
    saes: Mapping[str, SAEWeights],
    edits: Mapping[str, SiteEdit],
    strength: float = 1.0,
    *,
    fp8: bool = False,
) -> dict[str, EditTensors]:
    """Return the tensors of a concept's edits by site."""
    return {
        site: EditTensors.build(saes[site], edit, strength, fp8=fp8)
        for site, edit in edits.items()
    }
