# SPDX-License-Identifier: Apache-2.0
"""The edit: resident masks, the slots of this step's tokens, the op at each site."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_sauce.bundle import Bundle
from vllm_sauce.client import KEY, has_sauce_keys
from vllm_sauce.concepts import is_vision
from vllm_sauce.errors import BundleMismatchError, CanaryError, InvalidRequestError
from vllm_sauce.plugin.sites.action import FeaturesAct, SiteAction, StreamAct, action_of
from vllm_sauce.plugin.sites.encoder_batches import Announced
from vllm_sauce.plugin.worker.decoder_site import (
    NO_PROMPT,
    DecoderSite,
    PromptRuns,
    reads_plan,
)
from vllm_sauce.plugin.worker.decoding import Decoding
from vllm_sauce.unlearning.mask import Checked, Mask, mask_id_of
from vllm_sauce.unlearning.slots import OP_TENSORS, SiteTable, on_device
from vllm_sauce_kernels.masked_edit import masked_edit, plan_of


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
        self.weights_lost = False
        """Whether they were thrown away or others came since; a reload brings them."""
        self.weights_seen: str | None = None
        """Their checksum at the last look."""
        self.layers: dict[str, Any] = {}
        """The module of each decoder site."""
        self._proven = False
        self._decoding: Decoding | None = None
        self._index_of: dict[str, int] = {}
        """Of each request that a runner holds, from 1 on."""
        self._free: list[int] = []
        """Indices of no request, or of one that has ended."""
        self._prompt_lengths = np.full(1, -1)
        """Of masked requests, by index, -1 of others; 0 is no request's."""
        self._reads_prompts = False
        """Whether the last step held tokens of a masked prompt."""

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
        self._decoding, self._reads_prompts = None, False
        super().tell_step(req_ids, starts, num_tokens, held)
        if not self._reads_prompts:
            steps = [site.step for site in self.decoder.values()]
            self._decoding = Decoding(self.changes, req_ids, steps, starts, num_tokens)

    def add_request(self, req_id: str, params: Any, new_request: Any) -> None:
        """Expect a request, which has an index from now on."""
        # It has none until all is done: what fails half-way must not look begun.
        index = self._index_of.pop(req_id, None)
        super().add_request(req_id, params, new_request)
        if index is None:
            index = self._new_index()
        mask = self.live[req_id]
        length = -1 if mask is None else self.prompts[req_id].length
        self._prompt_lengths[index] = length
        for site in self.decoder.values():
            site.begin_request(index, mask)
        self._index_of[req_id] = index

    def _new_index(self) -> int:
        if not self._free:
            size = len(self._prompt_lengths)
            self._prompt_lengths = np.append(self._prompt_lengths, np.full(size, -1))
            self._free += range(size, 2 * size)
        return self._free.pop()

    def remove_request(self, req_id: str) -> None:
        """Expect no more of a request."""
        super().remove_request(req_id)
        if (index := self._index_of.pop(req_id, None)) is not None:
            self._free.append(index)

    def _indices(self, req_ids: Sequence[str]) -> np.ndarray:
        """Return the index of each request, 0 for a dummy.

        Raises: CanaryError for one that was told of and never begun
        """
        index_of = self._index_of
        try:
            found = [index_of[req_id] for req_id in req_ids]
        except KeyError:
            found = [index_of.get(req_id, 0) for req_id in req_ids]
            for req_id, index in zip(req_ids, found, strict=True):
                if not index and req_id in self.live:
                    raise CanaryError(
                        f"request {req_id!r} is in a batch and did not begin well; "
                        "refusing to serve it unedited"
                    ) from None
        return np.array(found, np.int64)

    def lose_weights(self) -> None:
        """Take the proof back until the weights of the start are there again."""
        self.weights_lost, self.proven = True, False

    def begin_step(
        self, req_ids: Sequence[str], starts: np.ndarray, num_tokens: np.ndarray
    ) -> None:
        """Write the slots of a real batch, in its order, before the forward pass.

        Raises: CanaryError for a masked request while nothing proves that the edit runs
        """
        indices = self._indices(req_ids)
        lengths = self._prompt_lengths[indices]
        if (lengths < 0).all():
            for site in self.decoder.values():
                if site.written:
                    site.set_spans([], [])
            return
        if not self.proven:
            raise CanaryError(
                "a masked request is to run, and what proved that the edit does was "
                "taken back: weights were lost or replaced, and no proof followed"
            )
        places = np.flatnonzero(starts < lengths)
        self._reads_prompts = len(places) > 0
        prompts = self._prompt_runs(req_ids, places, starts, num_tokens)
        for site in self.decoder.values():
            site.set_requests(indices, num_tokens, prompts)

    def _prompt_runs(
        self,
        req_ids: Sequence[str],
        places: np.ndarray,
        starts: np.ndarray,
        num_tokens: np.ndarray,
    ) -> PromptRuns:
        """Return what masked prompts' tokens a step holds, at these places of it."""
        if not len(places):
            return NO_PROMPT
        sizes: list[int] = []
        masks: list[Mask] = []
        kinds: list[str] = []
        counts: list[int] = []
        for place in places.tolist():
            req_id = req_ids[place]
            spans = self.prompts[req_id].spans(int(starts[place]), num_tokens[place])
            runs = list(spans)
            sizes.append(len(runs))
            masks += [self.live[req_id]] * len(runs)
            kinds += [kind for kind, _ in runs]
            counts += [count for _, count in runs]
        return PromptRuns(places, np.array(sizes), masks, kinds, counts)

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


def runtime_of(model: Any) -> SauceRuntime | None:
    """Return the edit in a model, None without sauce."""
    action = action_of(model)
    return action if isinstance(action, SauceRuntime) else None
