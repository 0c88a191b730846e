# SPDX-License-Identifier: Apache-2.0
"""A mask's edits at one site, the op's tensors, and which mask lives in which slot."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_sauce.concepts import Catalogue, check_site
from vllm_sauce.errors import ConfigError
from vllm_sauce.sae import NORMALIZATIONS, SAEWeights, fold_b_dec
from vllm_sauce.unlearning.fp8 import check_device, quantize_rows
from vllm_sauce.unlearning.mask import Mask
from vllm_sauce.unlearning.merging import rows_at

OP_TENSORS = (
    "mask_latents",
    "mask_scale",
    "mask_shift",
    "mask_gate",
    "mask_len",
    "W_enc_rows",
    "W_dec_rows",
    "b_enc",
    "edited_tokens",
)
"""Of a ``SiteTable``, in the op's order."""


@dataclass(frozen=True, slots=True)
class MaskRows:
    """Parallel rows: latent z gains ``scale * z + shift`` where z > gate."""

    latents: tuple[int, ...] = ()
    """Latents of the site's SAE, sorted, distinct."""

    scale: tuple[float, ...] = ()
    """strength * (gamma - 1)."""

    shift: tuple[float, ...] = ()
    """strength * shift."""

    gate: tuple[float, ...] = ()
    """Activation to exceed, without the SAE's own threshold."""

    def __len__(self) -> int:
        return len(self.latents)


def site_rows(mask: Mask, catalogue: Catalogue, site: str) -> MaskRows:
    """Return a mask's rows at a site; no rows if it edits nothing there.

    Raises: UnknownConceptError, InvalidRequestError for concepts that contradict
    """
    rows = rows_at(mask, catalogue, site)
    latents = tuple(sorted(rows))
    columns = zip(*(rows[latent] for latent in latents), strict=True)
    return MaskRows(latents, *columns) if latents else MaskRows()


class SiteTable:
    """Slots for masks at one site; addresses of its tensors never change.

    Shapes: mask_latents, mask_scale, mask_shift, mask_gate [num_slots, max_latents];
        mask_len, edited_tokens [num_slots]; W_enc_rows, W_dec_rows
        [num_pool, d_model]; b_enc [num_pool]. A TopK SAE has d_sae rows in W_enc_rows
        and b_enc.
    """

    def __init__(
        self,
        sae: SAEWeights,
        catalogue: Catalogue,
        site: str,
        num_slots: int,
        max_latents: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        fp8: bool = False,
        approximate: str | None = None,
    ) -> None:
        for name, value in (("num_slots", num_slots), ("max_latents", max_latents)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        self.site = check_site(site)
        self.num_slots = num_slots
        self.max_latents = max_latents
        self.generation = 0
        """Grows when a mask leaves: slots handed out before may mean another then."""
        self.catalogue = catalogue
        self._slot_of_mask: OrderedDict[str | None, int] = OrderedDict()
        self._free = list(range(num_slots))
        self.approximate = approximate if sae.k else None
        if self.approximate == "relu":
            # A masked latent counts wherever it is positive, ranked or not.
            sae = replace(sae, k=None, architecture="standard")
        self._build_pool(sae, torch.device(device), dtype)
        self._scale_enc = self._scale_dec = torch.ones(len(self.pool_latents))
        if fp8:
            self._quantize(sae)
        self._build_slots(torch.device(device))
        self.loaded_checksum = self.checksum()
        """What ``checksum`` was when the rows were loaded; they never change."""

    def _build_pool(
        self, sae: SAEWeights, device: torch.device, dtype: torch.dtype
    ) -> None:
        # A site no concept uses keeps one idle row: the op's tensors stay non-empty.
        self.pool_latents: tuple[int, ...] = self.catalogue.latents(self.site) or (0,)
        if self.pool_latents[-1] >= sae.d_sae:
            raise ConfigError(
                f"latents at {self.site!r} must be below d_sae={sae.d_sae}, "
                f"got {self.pool_latents[-1]}"
            )
        self._row_of_latent = {latent: i for i, latent in enumerate(self.pool_latents)}
        self.topk = sae.k or 0
        self.normalize = NORMALIZATIONS.index(sae.normalize_activations)
        pool = torch.tensor(self.pool_latents, device=sae.W_enc.device)
        # A rank among all latents needs the whole encoder, the edited ones first.
        rows = _pool_first(pool, sae.d_sae) if self.topk else pool
        W_enc = sae.W_enc[:, rows]
        b_enc = sae.b_enc[rows].float()
        if sae.apply_b_dec_to_input:
            b_enc = fold_b_dec(W_enc, b_enc, sae.b_dec)
        self._threshold = (
            torch.zeros(len(self.pool_latents))
            if sae.threshold is None
            else sae.threshold[pool].float().cpu()
        )
        self.W_enc_rows = W_enc.T.to(device=device, dtype=dtype).contiguous()
        self.W_dec_rows = sae.W_dec[pool].to(device=device, dtype=dtype).contiguous()
        self.b_enc = b_enc.to(device).contiguous()

    def _quantize(self, sae: SAEWeights) -> None:
        """Put the rows into fp8; their scales go to bias, gates and changes."""
        check_device(self.W_enc_rows.device)
        device = self.W_enc_rows.device
        pool = torch.tensor(self.pool_latents, device=sae.W_enc.device)
        rows, scale = quantize_rows(sae.W_dec[pool])
        self.W_dec_rows, self._scale_dec = rows.to(device), scale.cpu()
        # Ranks compare pre-activations of different rows, which scales would distort.
        if not self.topk:
            rows, scale = quantize_rows(sae.W_enc[:, pool].T)
            self.W_enc_rows = rows.to(device).contiguous()
            self._scale_enc = scale.cpu()
            self.b_enc = self.b_enc / scale.to(device)

    def _build_slots(self, device: torch.device) -> None:
        shape = (self.num_slots, self.max_latents)
        self.mask_latents = torch.zeros(shape, dtype=torch.int32, device=device)
        self.mask_scale, self.mask_shift, self.mask_gate = (
            torch.zeros(shape, dtype=torch.float32, device=device) for _ in range(3)
        )
        self.mask_len = torch.zeros(self.num_slots, dtype=torch.int32, device=device)
        self.edited_tokens = torch.zeros(
            self.num_slots, dtype=torch.int64, device=device
        )
        self.slot_len = np.zeros(self.num_slots, np.int32)
        """``mask_len`` on the host, which plans by it."""

    @property
    def pool_bytes(self) -> int:
        """Memory of the SAE's resident rows."""
        tensors = (self.W_enc_rows, self.W_dec_rows, self.b_enc)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def checksum(self) -> tuple[int, ...]:
        """Return a number for each tensor of resident rows, of its bytes. Waits."""
        tensors = (self.W_enc_rows, self.W_dec_rows, self.b_enc)
        return tuple(
            int(tensor.view(torch.uint8).sum(dtype=torch.int64)) for tensor in tensors
        )

    def op_args(self) -> dict[str, Any]:
        """Return the op's tensors and numbers by argument name."""
        return {n: getattr(self, n) for n in (*OP_TENSORS, "topk", "normalize")}

    def assign(self, masks: Sequence[Mask | None]) -> list[int]:
        """Make every mask of a step resident and return its slot, -1 for none.

        The least recently used masks leave; none of this step's ever does.

        Raises: ConfigError
        """
        mask_ids = [None if mask is None else mask.mask_id for mask in masks]
        slot_of = self._slot_of_mask
        residents = [name for name in dict.fromkeys(mask_ids) if name in slot_of]
        fresh = {
            mask.mask_id: rows
            for mask in masks
            if mask is not None
            and mask.mask_id not in slot_of
            and (rows := self._rows(mask))
        }
        if (wanted := len(residents) + len(fresh)) > self.num_slots:
            raise ConfigError(
                f"a step may hold at most {self.num_slots} distinct masks, "
                f"got {wanted}; raise num_slots"
            )
        for mask_id in residents:
            slot_of.move_to_end(mask_id)
        # Residents of this step are now the youngest, so eviction from the old end
        # cannot reach them: there are at least as many slots as masks.
        for mask_id, rows in fresh.items():
            self._insert(mask_id, rows)
        return [slot_of.get(mask_id, -1) for mask_id in mask_ids]

    def resident(self, masks: Sequence[Mask | None]) -> list[int] | None:
        """Return the slot of each mask, -1 for none, or None if one is in no slot."""
        slot_of, slots = self._slot_of_mask, []
        for mask in masks:
            if mask is None:
                slots.append(-1)
            elif mask.mask_id in slot_of:
                slot_of.move_to_end(mask.mask_id)
                slots.append(slot_of[mask.mask_id])
            else:
                return None
        return slots

    def reset(self) -> None:
        """Forget every mask and count; the tensors keep their addresses."""
        self.generation += 1
        self._slot_of_mask.clear()
        self._free = list(range(self.num_slots))
        self.slot_len[:] = 0
        for tensor in (
            self.mask_latents,
            self.mask_scale,
            self.mask_shift,
            self.mask_gate,
            self.mask_len,
            self.edited_tokens,
        ):
            tensor.zero_()

    def _rows(self, mask: Mask) -> MaskRows:
        rows = site_rows(mask, self.catalogue, self.site)
        if len(rows) > self.max_latents:
            raise ConfigError(
                f"a mask at {self.site!r} may edit {self.max_latents} latents, "
                f"got {len(rows)}; raise max_latents"
            )
        return rows

    def _insert(self, mask_id: str, rows: MaskRows) -> None:
        if self._free:
            slot = self._free.pop(0)
        else:
            _, slot = self._slot_of_mask.popitem(last=False)
            self.generation += 1
        self._write(slot, rows)
        # Registered only after the write: a failed write leaves no mask in a slot.
        self._slot_of_mask[mask_id] = slot

    def _write(self, slot: int, rows: MaskRows) -> None:
        pool_rows = torch.tensor([self._row_of_latent[j] for j in rows.latents])
        gate = torch.tensor(rows.gate, dtype=torch.float32)
        gate = torch.maximum(gate, self._threshold[pool_rows])
        out = self._scale_dec[pool_rows]
        enc = self._scale_enc[pool_rows]
        count = len(rows)
        stage(self.mask_latents[slot, :count], pool_rows.int())
        stage(self.mask_scale[slot, :count], _column(rows.scale) * enc * out)
        stage(self.mask_shift[slot, :count], _column(rows.shift) * out)
        stage(self.mask_gate[slot, :count], gate / enc)
        # Assigned, the number would be copied from memory that a GPU waits for.
        self.mask_len[slot : slot + 1].fill_(count)
        self.slot_len[slot] = count


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """Return numbers of the host on a device, without waiting for the copy."""
    # From pageable memory a copy would wait, which vLLM's checks rightly forbid.
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)


def stage(into: Tensor, values: Tensor) -> None:
    """Copy numbers of the host into a tensor of a device without waiting for it.

    Shapes, dtypes: those of ``into``
    """
    into.copy_(values.pin_memory() if into.is_cuda else values, non_blocking=True)


def host_zeros(size: int, device: torch.device) -> Tensor:
    """Return int32 zeros on the host, to be copied to a device without waiting."""
    # Each step's own: its copy may be under way when the next step is written.
    values = torch.empty(size, dtype=torch.int32, pin_memory=device.type == "cuda")
    # By numpy: torch wakes a thread of every core for as many, and waits for all.
    values.numpy().fill(0)
    return values


def _pool_first(pool: Tensor, d_sae: int) -> Tensor:
    """Return all latents, those of the pool first. Shapes: [num_pool] -> [d_sae]"""
    rest = torch.ones(d_sae, dtype=torch.bool, device=pool.device)
    rest[pool] = False
    return torch.cat([pool, rest.nonzero()[:, 0]])


def _column(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)
