# SPDX-License-Identifier: Apache-2.0
"""What one worker holds: resident masks, the slots of this step's tokens, the op."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.bundle import Bundle
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import CanaryError, InvalidRequestError
from vllm_sauce.unlearning import Mask
from vllm_sauce.unlearning.cache_identity import mask_id_of
from vllm_sauce.unlearning.slots import SiteTable
from vllm_sauce.unlearning.wire import KEY, has_sauce_keys
from vllm_sauce_kernels.masked_edit import Planner, kernel_choice, masked_edit

_TENSORS = (
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


class DecoderSite:
    """A decoder layer's table and the slot of every token of the current step."""

    def __init__(self, table: SiteTable, max_num_tokens: int) -> None:
        self.table = table
        device = table.mask_len.device
        self.slot_of_token = torch.full(
            (max_num_tokens,), -1, dtype=torch.int32, device=device
        )
        self.planner, self.plan = make_plan(table, self.slot_of_token)
        self._written = 0
        self._step: tuple[list[Mask | None], list[int], int] | None = None
        """Masks, token counts and the table's generation that the buffer was written
        for, if it holds a step's slots."""

    def set_spans(
        self, masks: Sequence[Mask | None], num_tokens: Sequence[int]
    ) -> None:
        """Give each request's span of tokens its slot; all others get -1.

        Shapes: masks and num_tokens [num_reqs], in the order of the batch.
        """
        step = (list(masks), list(num_tokens), self.table.generation)
        # Decoding repeats itself, and its masks cannot have left their slots since.
        if step == self._step:
            return
        self._step = None
        slots = self.table.assign(masks)
        if self._written == 0 and all(slot < 0 for slot in slots):
            return  # idle: the buffer is all -1 already
        spans = torch.repeat_interleave(
            torch.tensor(slots, dtype=torch.int32), torch.tensor(list(num_tokens))
        )
        total = max(self._written, len(spans))
        padded = torch.full((total,), -1, dtype=torch.int32)
        padded[: len(spans)] = spans
        self.slot_of_token[:total].copy_(padded)
        if self.plan is not None:
            self.plan.copy_(self.planner.plan(slots, num_tokens))
        self._written = len(spans) if any(slot >= 0 for slot in slots) else 0
        self._step = step

    def clear(self) -> None:
        """Forget the last step: dummy and profiling runs must see no slot."""
        self._step = None
        if self._written:
            self.slot_of_token[: self._written].fill_(-1)
            if self.plan is not None:
                self.plan.zero_()
            self._written = 0


class VisionSite:
    """The vision tower's table and the masks of the images about to be encoded."""

    def __init__(self, table: SiteTable) -> None:
        self.table = table
        self._pending: list[Mask | None] = []

    def expect(self, masks: Sequence[Mask | None]) -> None:
        """Announce the images of the next encoder run, in order."""
        self._pending = list(masks)

    def finish(self) -> None:
        """Check that every announced image passed the site.

        Raises: CanaryError when an image went around the tower.
        """
        left, self._pending = self._pending, []
        if any(mask is not None for mask in left):
            raise CanaryError(
                f"{len(left)} images were encoded without passing the vision site; "
                "refusing to serve them unedited"
            )

    def edit(self, image_features: Tensor) -> Tensor:
        """Return the features of the next images, edited where their mask says.

        Shapes: image_features [num_images, num_patches, d_model], same out.
        Raises: CanaryError when there are more images than were announced.
        """
        if not self._pending or all(mask is None for mask in self._pending):
            # No masked image in this run (or profiling): nothing may be touched.
            del self._pending[: image_features.shape[0]]
            return image_features
        if image_features.dim() != 3 or len(self._pending) < image_features.shape[0]:
            raise CanaryError(
                f"the vision site got features of shape {tuple(image_features.shape)} "
                f"for {len(self._pending)} announced images; cannot tell whose is whose"
            )
        num_images, num_patches, d_model = image_features.shape
        masks, self._pending = (
            self._pending[:num_images],
            self._pending[num_images:],
        )
        slots = self.table.assign(masks)
        slot_of_token = torch.tensor(slots, dtype=torch.int32).repeat_interleave(
            num_patches
        )
        slot_of_token = slot_of_token.to(image_features.device)
        planner, plan = make_plan(self.table, slot_of_token)
        if plan is not None:
            plan.copy_(planner.plan(slots, [num_patches] * num_images))
        edited = image_features.reshape(-1, d_model).clone()
        run_edit(edited, None, slot_of_token, self.table, plan)
        return edited.view(num_images, num_patches, d_model)


class SauceRuntime:
    """Everything the edit needs in one worker; one per loaded model."""

    def __init__(self, bundle: Bundle, config: SauceConfig) -> None:
        self.bundle = bundle
        self.config = config
        self.decoder: dict[str, DecoderSite] = {}
        self.vision: VisionSite | None = None
        self.proven = False
        """True once the canary has seen the op fire in the model as served."""
        self.in_canary = False
        """True while the canary itself drives dummy runs with a slot set."""
        self._masks: dict[str, Mask] = {}

    def mask_of(self, extra_args: Mapping[str, Any] | None) -> Mask | None:
        """Return the mask admission resolved for a request.

        Raises: InvalidRequestError for a request that went around admission;
            CanaryError for a masked request before the canary has passed.
        """
        wire = (extra_args or {}).get(KEY)
        if not isinstance(wire, Mapping) or set(wire) != {"mask"}:
            if has_sauce_keys(extra_args) or (self.config.forget and self.proven):
                raise InvalidRequestError(
                    "a request reached the worker without passing sauce's admission; "
                    "refusing to serve it unedited"
                )
            return None
        resolved = wire["mask"]
        mask = self._masks.get(resolved.get("mask_id", ""))
        if mask is None:
            mask = Mask.from_wire(resolved, self.bundle.digest)
            if not set(self.config.forget) <= set(mask.names()):
                raise InvalidRequestError(
                    "a mask without this server's mandatory concepts reached the worker"
                )
            self._remember(mask)
        if not self.proven:
            raise CanaryError(
                "a masked request came before the canary proved that the edit runs"
            )
        return mask

    def _remember(self, mask: Mask) -> None:
        if len(self._masks) >= 4096:  # bounds memory; a forgotten mask is parsed again
            self._masks.pop(next(iter(self._masks)))
        self._masks[mask.mask_id] = mask

    def begin_step(
        self, masks: Sequence[Mask | None], num_tokens: Sequence[int]
    ) -> None:
        """Write the slots of a real batch, in its order, before the forward pass."""
        for site in self.decoder.values():
            site.set_spans(masks, num_tokens)

    def clear_step(self) -> None:
        """Write -1 everywhere, for dummy and profiling runs."""
        for site in self.decoder.values():
            site.clear()

    def expect_images(
        self, identifiers: Sequence[str], masks: Sequence[Mask | None]
    ) -> None:
        """Announce images by cache identifier; the key decides the edit.

        So an encoder output cached under a mask's key is always edited by that mask.

        Raises: CanaryError for a key of a mask that no scheduled request carries.
        """
        if self.vision is None:
            return
        by_id = {mask.mask_id: mask for mask in masks if mask is not None}
        expected: list[Mask | None] = []
        for identifier in identifiers:
            mask_id = mask_id_of(identifier)
            if mask_id is None:
                expected.append(None)
                continue
            if mask_id not in by_id:
                raise CanaryError(f"image {identifier[:40]}… belongs to no known mask")
            expected.append(by_id[mask_id])
        self.vision.expect(expected)

    def images_done(self) -> None:
        """Check that the encoder run passed the site. Raises: CanaryError."""
        if self.vision is not None:
            self.vision.finish()


def run_edit(
    hidden_states: Tensor,
    residual: Tensor | None,
    slot_of_token: Tensor,
    table: SiteTable,
    plan: Tensor | None = None,
) -> None:
    """Call the op with a site's tables; edits ``hidden_states`` in place."""
    masked_edit(
        hidden_states,
        residual,
        slot_of_token,
        **table.op_args(),
        plan=plan,
    )


def make_plan(table: SiteTable, slot_of_token: Tensor) -> tuple[Planner, Tensor | None]:
    """Return what plans a site's steps, and the plan's buffer where one is read.

    CPU forms read none.
    """
    num_pool = len(table.W_dec_rows)
    planner = Planner(
        len(slot_of_token),
        table.num_slots,
        num_pool,
        rows=table.slot_rows,
        ranked=table.topk > 0,
        costs=table.costs,
    )
    if table.mask_len.device.type == "cpu" and kernel_choice() != "triton":
        return planner, None
    return planner, torch.zeros(
        planner.size, dtype=torch.int32, device=table.mask_len.device
    )


def runtime_of(model: Any) -> SauceRuntime | None:
    """Return the runtime injected into a model, None without sauce."""
    runtime: SauceRuntime | None = getattr(model, "_sauce_runtime", None)
    return runtime
