# SPDX-License-Identifier: Apache-2.0
"""The edit: resident masks, the slots of this step's tokens, the op at each site."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_sauce.bundle import Bundle
from vllm_sauce.client import KEY, has_sauce_keys
from vllm_sauce.concepts import is_vision
from vllm_sauce.concepts.site import GENERATED
from vllm_sauce.errors import BundleMismatchError, CanaryError, InvalidRequestError
from vllm_sauce.plugin.sites.action import FeaturesAct, SiteAction, StreamAct, action_of
from vllm_sauce.plugin.sites.encoder_batches import Announced
from vllm_sauce.plugin.sites.tokens import PromptTokens
from vllm_sauce.plugin.worker.decoding import Decoding
from vllm_sauce.unlearning.mask import Checked, Mask, mask_id_of
from vllm_sauce.unlearning.slots import OP_TENSORS, SiteTable, host_zeros, on_device
from vllm_sauce_kernels.masked_edit import (
    kernel_choice,
    masked_edit,
    plan_of,
    plan_size,
    write_plan,
)

KEPT_PARTS = 4096
"""Of masks, by kind of token; there may be any number of masks."""

_ALIGNMENT = 4
"""Numbers of 32 bits: kernels read a plan that starts at 16 bytes."""


class DecoderSite:
    """A decoder layer's table and the slot of every token of the current step."""

    def __init__(self, table: SiteTable, max_num_tokens: int) -> None:
        self.table = table
        # One copy brings a step: the slot of each token and, behind it, the plan.
        self._plan_at = -(-max_num_tokens // _ALIGNMENT) * _ALIGNMENT
        size = plan_size(max_num_tokens, table.num_slots) if reads_plan(table) else 0
        self._step_tensor = torch.zeros(
            self._plan_at + size, dtype=torch.int32, device=table.mask_len.device
        )
        self.slot_of_token = self._step_tensor[:max_num_tokens].fill_(-1)
        self.plan = self._step_tensor[self._plan_at :] if size else None
        self._parts: dict[tuple[str, str], Mask | None] = {}
        self.written = 0
        """How many tokens' slots are in the buffer; behind them, all are -1."""
        self._step: tuple[list[Mask | None], list[int], int] | None = None
        """Masks, token counts and the table's generation that the buffer was written
        for, if it holds a step's slots."""

    def part(self, mask: Mask | None, kind: str) -> Mask | None:
        """Return what of a mask acts here on tokens of a kind, None for nothing."""
        if mask is None:
            return None
        key = mask.mask_id, kind
        if key not in self._parts:
            if len(self._parts) >= KEPT_PARTS:
                self._parts.clear()
            table = self.table
            self._parts[key] = mask.at_tokens(table.catalogue, table.site, kind)
        return self._parts[key]

    def set_spans(
        self, masks: Sequence[Mask | None], num_tokens: Sequence[int]
    ) -> None:
        """Give each run of tokens its mask's slot; all others get -1.

        Shapes: masks and num_tokens [num_runs], in the order of the batch.
        """
        step = (list(masks), list(num_tokens), self.table.generation)
        # Decoding repeats itself, and its masks cannot have left their slots since.
        if step == self._step:
            return
        self._step = None
        slots = self.table.assign(masks)
        # Idle: the buffer is all -1 already.
        if self.written == 0 and max(slots, default=-1) < 0:
            return
        spans = np.repeat(np.array(slots, np.int32), num_tokens)
        if len(spans) > len(self.slot_of_token):
            raise ValueError(
                f"there is room for {len(self.slot_of_token)} tokens, got {len(spans)}"
            )
        edited = len(spans) if spans.max(initial=-1) >= 0 else 0
        if self.plan is None:
            total = max(self.written, len(spans))
        else:
            total = len(self._step_tensor)
        values = host_zeros(total, self._step_tensor.device)
        into = values.numpy()
        into[len(spans) : self._plan_at] = -1
        into[: len(spans)] = spans
        if self.plan is not None:
            max_tokens = len(self.slot_of_token)
            write_plan(into[self._plan_at :], into[:max_tokens], self.table.slot_len)
        self._step_tensor[:total].copy_(values, non_blocking=True)
        self.written, self._step = edited, step

    @property
    def step(self) -> object:
        """What the buffer was written for: that step's own object, None if lost."""
        step = self._step
        return None if step is None or step[2] != self.table.generation else step

    def clear(self) -> None:
        """Forget the last step: dummy and profiling runs must see no slot."""
        self._step = None
        if self.written:
            self.slot_of_token[: self.written].fill_(-1)
            if self.plan is not None:
                self.plan.zero_()
            self.written = 0


class VisionSite:
    """A vision site's table; a batch in the encoder is edited by its one mask.

    Where no concept edits, there is none; the canary cuts the model there, too.
    """

    def __init__(
        self, site: str, announced: Announced, table: SiteTable | None
    ) -> None:
        self.site, self.announced, self.table = site, announced, table
        self.constant: float | None = None
        """What the canary puts in the place of all features, to cut a model here."""

    def edit(self, image_features: Tensor) -> Tensor:
        """Return the features of the batch in the encoder, under its mask.

        Shapes: image_features [..., d_model], same out.
        Raises: CanaryError for pictures that nobody announced.
        """
        masks = self.announced.enter(self.site)
        if self.constant is not None:
            return torch.full_like(image_features, self.constant)
        if self.table is None:
            return image_features
        d_model = self.table.W_dec_rows.shape[1]
        if image_features.shape[-1] != d_model:
            raise BundleMismatchError(
                f"site {self.site}: the model's features are "
                f"{image_features.shape[-1]} wide, the bundle's SAE is for {d_model}"
            )
        if not masks or masks[0] is None:
            return image_features  # nobody's, or profiling: nothing may be touched
        (slot,) = self.table.assign(masks[:1])
        edited = image_features.reshape(-1, image_features.shape[-1]).clone()
        run_edit(edited, None, np.full(len(edited), slot, np.int32), self.table)
        return edited.view(image_features.shape)


class SauceRuntime(SiteAction):
    """Everything the edit needs in one worker."""

    def __init__(
        self,
        bundle: Bundle,
        tables: Mapping[str, SiteTable],
        max_num_tokens: int,
        vision_sites: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.bundle = bundle
        self.tables = dict(tables)
        self.decoder = {
            site: DecoderSite(table, max_num_tokens)
            for site, table in tables.items()
            if not is_vision(site)
        }
        announced = Announced(vision_sites)
        self.vision = {
            site: VisionSite(site, announced, tables.get(site)) for site in vision_sites
        }
        if self.vision:
            self.announced = announced
        self.weights: str | None = None
        """The hash of the model's weights, where they are not the bundle's."""
        self.layers: dict[str, Any] = {}
        """The module of each decoder site."""
        self._proven = False
        self._decoding: Decoding | None = None

    @property
    def proven(self) -> bool:
        """True once the canary has seen the op fire in the model as served."""
        return self._proven

    @proven.setter
    def proven(self, value: bool) -> None:
        self._proven, self._decoding = value, None
        if self.announced is not None:
            self.announced.strict = value

    def label_of(self, extra_args: Mapping[str, Any] | None) -> Mask | None:
        """Return the mask that the engine core has found in a request.

        Raises: InvalidRequestError for a request that went around it; CanaryError for
            a masked request before the canary has passed.
        """
        mark = (extra_args or {}).get(KEY)
        if not isinstance(mark, Checked):
            if not self.proven and not has_sauce_keys(extra_args):
                return None  # vLLM's own warm-up
            raise InvalidRequestError(
                "a request reached a worker without passing sauce's admission and the "
                "engine core; refusing to serve it unedited"
            )
        if mark.mask is not None and not self.proven:
            raise CanaryError(
                "a masked request came before the canary proved that the edit runs"
            )
        return mark.mask

    def tell_step(
        self,
        req_ids: Sequence[str],
        starts: np.ndarray,
        num_tokens: np.ndarray,
        held: Container[str] | None = None,
    ) -> None:
        """Tell of the next forward pass; of one that only goes on, in no time."""
        steps = [site.step for site in self.decoder.values()]
        last = self._decoding
        if (
            last is not None
            and last.goes_on(self.changes, req_ids, steps)
            and (not self.prompts or last.advances(starts, num_tokens))
        ):
            return
        self._decoding = None
        super().tell_step(req_ids, starts, num_tokens, held)
        if all(
            start >= prompt.length
            for req_id, start in zip(req_ids, starts.tolist(), strict=True)
            if (prompt := self.prompts.get(req_id)) is not None
        ):
            steps = [site.step for site in self.decoder.values()]
            self._decoding = Decoding(self.changes, req_ids, steps, starts, num_tokens)

    def begin_step(
        self,
        labels: Sequence[Mask | None],
        prompts: Sequence[PromptTokens | None],
        starts: Sequence[int],
        num_tokens: Sequence[int],
    ) -> None:
        """Write the slots of a real batch, in its order, before the forward pass.

        Raises: CanaryError for a masked request whose prompt is not known, or while
            nothing proves that the edit runs.
        """
        if all(mask is None for mask in labels):
            for site in self.decoder.values():
                if site.written:
                    site.set_spans([], [])
            return
        if not self.proven:
            raise CanaryError(
                "a masked request is to run, and what proved that the edit does was "
                "taken back: weights were lost or replaced, and no proof followed"
            )
        masks: list[Mask | None] = []
        kinds: list[str] = []
        counts: list[int] = []
        for mask, prompt, start, count in zip(
            labels, prompts, starts, num_tokens, strict=True
        ):
            if mask is not None and prompt is None:
                raise CanaryError(
                    "a masked request's tokens came before its prompt was told; "
                    "refusing to guess which of them are edited"
                )
            if mask is None or prompt is None:
                runs: Iterable[tuple[str, int]] = (("", count),)
            elif start >= prompt.length:
                runs = ((GENERATED, count),)  # most of a batch
            else:
                runs = prompt.spans(start, count)
            for kind, length in runs:
                masks.append(mask)
                kinds.append(kind)
                counts.append(length)
        for site in self.decoder.values():
            site.set_spans(list(map(site.part, masks, kinds)), counts)

    def clear_step(self) -> None:
        """Write -1 everywhere, for dummy and profiling runs."""
        for site in self.decoder.values():
            site.clear()

    def picture_labels(
        self, identifiers: Sequence[str], req_ids: Sequence[str]
    ) -> list[Mask | None]:
        """Return the mask of each picture; the encoder cache's key decides.

        So an encoder output cached under a mask's key is always edited by that mask.

        Raises: CanaryError for a key of a mask that no scheduled request carries.
        """
        carried = [self.live.get(req_id) for req_id in req_ids]
        by_id = {mask.mask_id: mask for mask in carried if mask is not None}
        masks: list[Mask | None] = []
        for identifier in identifiers:
            mask_id = mask_id_of(identifier)
            if mask_id is not None and mask_id not in by_id:
                raise CanaryError(f"image {identifier[:40]}… belongs to no known mask")
            masks.append(None if mask_id is None else by_id[mask_id])
        return masks

    def at_decoder(self, site: str, layer: Any) -> StreamAct:
        """Give a layer its site's tensors, which ``edit_stream`` reads."""
        decoder = self.decoder[site]
        self.layers[site] = layer
        _keep(layer, decoder.table)
        for name in ("slot_of_token", "plan"):
            tensor = getattr(decoder, name)
            layer.register_buffer(f"sauce_{name}", tensor, persistent=False)
        layer.sauce_topk = decoder.table.topk
        layer.sauce_normalize = decoder.table.normalize
        return edit_stream

    def at_vision(self, site: str, connector: Any) -> FeaturesAct:
        """Give the module behind the tower the site's tensors."""
        if site in self.tables:
            _keep(connector, self.tables[site])
        return self.vision[site].edit


def _keep(module: Any, table: SiteTable) -> None:
    """Make a site's tensors buffers: vLLM saves no others when it sleeps."""
    for name in OP_TENSORS:
        module.register_buffer(f"sauce_{name}", getattr(table, name), persistent=False)


def edit_stream(layer: Any, hidden_states: Tensor, residual: Tensor | None) -> None:
    """Run the op on what a layer leaves; the change is added to the first tensor.

    By the layer's buffers, one by one: so they are inputs of its compiled graph.
    """
    masked_edit(
        hidden_states,
        residual,
        layer.sauce_slot_of_token,
        **{name: getattr(layer, f"sauce_{name}") for name in OP_TENSORS},
        topk=layer.sauce_topk,
        normalize=layer.sauce_normalize,
        plan=layer.sauce_plan,
    )


def run_edit(
    hidden_states: Tensor, residual: Tensor | None, slots: np.ndarray, table: SiteTable
) -> None:
    """Call the op with a site's tables; edits ``hidden_states`` in place.

    Shapes: hidden_states, residual [num_tokens, d_model]; slots [num_tokens] int32
    """
    slot_of_token, plan = torch.from_numpy(slots), None
    if reads_plan(table):
        made = plan_of(slot_of_token, torch.from_numpy(table.slot_len))
        plan = on_device(made, hidden_states.device)
    slot_of_token = on_device(slot_of_token, hidden_states.device)
    masked_edit(hidden_states, residual, slot_of_token, **table.op_args(), plan=plan)


def reads_plan(table: SiteTable) -> bool:
    """Say whether the op reads a plan where a table is; CPU forms do not."""
    return table.mask_len.device.type != "cpu" or kernel_choice() == "triton"


def runtime_of(model: Any) -> SauceRuntime | None:
    """Return the edit in a model, None without sauce."""
    action = action_of(model)
    return action if isinstance(action, SauceRuntime) else None
