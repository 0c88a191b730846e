# SPDX-License-Identifier: Apache-2.0
"""Activations of each sample, as the steps of a batch bring them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vllm_sauce.activations.shard_writer import ShardWriter
from vllm_sauce.activations.shards import Role, Rows
from vllm_sauce.concepts import is_vision
from vllm_sauce.errors import ActivationsError
from vllm_sauce.plugin.sites.action import FeaturesAct, SiteAction, StreamAct
from vllm_sauce.plugin.sites.encoder_batches import Announced
from vllm_sauce.plugin.sites.tokens import PictureSpan

SAMPLE = "harvest_sample"
"""In a request's ``extra_args``: its sample's number."""


class Finished(NamedTuple):
    """A sample whose tokens have all passed the sites."""

    sample: int
    num_prompt_tokens: int
    tokens: Sequence[int]
    """Ids, with the generated ones that were fed back."""


@dataclass(slots=True)
class _Held:
    """What has been seen of one sample."""

    pictures: tuple[PictureSpan, ...]
    chunks: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)


class ActivationTap(SiteAction):
    """Holds samples until they are finished, then hands them to the writer whole.

    A request's label is its sample's number, a picture's its identifier.
    """

    def __init__(self, sites: Sequence[str], dtype: torch.dtype) -> None:
        super().__init__()
        self.sites, self.dtype = tuple(sites), dtype
        self.writer: ShardWriter | None = None
        self._decoder = tuple(site for site in sites if not is_vision(site))
        self._vision = tuple(site for site in sites if is_vision(site))
        self._written: set[str] = set()
        self._held: dict[int, _Held] = {}
        self._pictures: dict[str, dict[str, Tensor]] = {}
        """By identifier and site."""
        self._seen: Sequence[str] = ()
        """The labels of the batch whose pictures were kept last."""
        self.announced = Announced(self._vision) if self._vision else None
        self._waiting: dict[str, list[tuple[int | None, int, int]]] = {}
        """Sites to come in this step; of each run of tokens its sample, None for a
        request that is not harvested, the first one's position, and their number."""

    def begin(self, writer: ShardWriter, written_pictures: Sequence[str] = ()) -> None:
        """Start a run; what an earlier one left unfinished is forgotten.

        ``written_pictures``: identifiers whose patches are on the disk already.
        """
        self.writer = writer
        self._written = set(written_pictures)
        self._held, self._pictures, self._waiting = {}, {}, {}

    def label_of(self, extra_args: Mapping[str, Any] | None) -> int | None:
        """Return the number of a request's sample, None if it is not harvested."""
        found = (extra_args or {}).get(SAMPLE)
        return None if found is None else int(found)

    def begin_request(self, label: int | None, mm_features: Iterable[Any]) -> None:
        """Expect a sample's tokens; if it starts again, what was seen goes."""
        if self.writer is not None and label is not None:
            self._held[label] = _Held(tuple(map(PictureSpan.of, mm_features)))

    def begin_step(
        self, req_ids: Sequence[str], starts: np.ndarray, num_tokens: np.ndarray
    ) -> None:
        """Announce the tokens of the next forward pass, in the order of the batch."""
        labels = map(self.live.get, req_ids)
        spans = list(zip(labels, starts.tolist(), num_tokens.tolist(), strict=True))
        self._waiting = {site: spans for site in self._decoder}

    def clear_step(self) -> None:
        """Announce a pass of dummy tokens: nothing of it is kept."""
        self._waiting = {}

    def picture_labels(
        self, identifiers: Sequence[str], req_ids: Sequence[str]
    ) -> Sequence[str]:
        """Return the pictures' identifiers, so that each is encoded alone."""
        return identifiers

    def at_decoder(self, site: str, layer: Any) -> StreamAct:
        """Copy what a layer leaves."""
        return lambda _, hidden_states, residual: self.take(
            site, hidden_states, residual
        )

    def at_vision(self, site: str, connector: Any) -> FeaturesAct:
        """Copy what the tower leaves."""
        return partial(self.take_picture, site)

    def take(self, site: str, hidden_states: Tensor, residual: Tensor | None) -> None:
        """Keep one step's activations of a decoder site.

        Shapes: hidden_states, residual [num_tokens or more, d_model]; their sum is the
            residual stream, or the first alone
        """
        spans = self._waiting.pop(site, None)
        if spans is None:
            return
        counts = [count for *_, count in spans]
        total = sum(counts)
        x = hidden_states[:total].float()
        if residual is not None:
            x = x + residual[:total].float()
        rows = x.to(self.dtype).cpu()
        for (sample, start, _), part in zip(spans, rows.split(counts), strict=True):
            held = None if sample is None else self._held.get(sample)
            if held is not None:
                held.chunks.setdefault(site, []).append((start, part))

    def take_picture(self, site: str, features: Tensor) -> Tensor:
        """Keep a vision site's activations of the picture in the encoder.

        A model may take its tiles one by one.

        Shapes: features [..., d_model], returned as they came
        """
        assert self.announced is not None
        names = self.announced.enter(site)
        if not names:
            return features  # profiling
        (name,) = names
        if name in self._written:
            return features
        if names is not self._seen:
            # It may have been encoded before, and have left the cache since.
            self._pictures[name], self._seen = {}, names
        rows = features.detach().to(dtype=self.dtype, copy=True).cpu().flatten(0, -2)
        parts = self._pictures[name]
        parts[site] = torch.cat([parts[site], rows]) if site in parts else rows
        return features

    def finish(self, finished: Sequence[Finished]) -> None:
        """Write samples whose requests have ended.

        Raises: ActivationsError if a token never passed a site, or the disk is full
        """
        if self.writer is None:
            raise ActivationsError("no harvest was begun")
        for one in finished:
            held = self._held.pop(one.sample)
            rows = {site: self._decoder_rows(one, held, site) for site in self._decoder}
            fresh = self._fresh_pictures(held) if self._vision else {}
            for site in self._vision if fresh else ():
                rows[site] = self._picture_rows(one.sample, site, fresh)
            self.writer.add(one.sample, rows, tuple(fresh))
            self._written.update(fresh)
            for name in fresh:
                del self._pictures[name]

    def drop(self, sample: int) -> None:
        """Forget a sample whose request failed."""
        self._held.pop(sample, None)

    def _decoder_rows(self, one: Finished, held: _Held, site: str) -> Rows:
        """Return a sample's tokens in order.

        A preempted request brings tokens twice: the later ones count.
        """
        chunks, num_tokens = held.chunks.get(site, []), len(one.tokens)
        seen = torch.zeros(num_tokens, dtype=torch.bool)
        d_model = chunks[0][1].shape[1] if chunks else 0
        x = torch.empty(num_tokens, d_model, dtype=self.dtype)
        for start, part in chunks:
            stop = min(start + len(part), num_tokens)
            x[start:stop], seen[start:stop] = part[: stop - start], True
        if not seen.all():
            raise ActivationsError(
                f"{int((~seen).sum())} of {num_tokens} tokens of sample "
                f"{one.sample} never passed {site}"
            )
        role = torch.full((num_tokens,), Role.TEXT, dtype=torch.uint8)
        role[one.num_prompt_tokens :] = Role.GENERATED
        sample = torch.full((num_tokens,), one.sample, dtype=torch.int32)
        position = torch.arange(num_tokens, dtype=torch.int32)
        token = torch.tensor(one.tokens, dtype=torch.int32)
        if self.picture_word is not None:
            role[(token == self.picture_word) & (role == Role.TEXT)] = Role.IMAGE
        for picture in held.pictures if self.picture_word is None else ():
            picture.mark(role, Role.IMAGE)
        return Rows(x, sample, position, role, token)

    def _fresh_pictures(self, held: _Held) -> dict[str, int | None]:
        """Return those to write; of each how many rows are not there to fill up."""
        across = self.picture_word is not None
        fresh = {
            picture.identifier: picture.length if across else None
            for picture in held.pictures
            if picture.identifier not in self._written
        }
        for name in fresh:
            if name not in self._pictures:
                raise ActivationsError(
                    f"picture {name[:16]}… was encoded without passing the vision site"
                )
        return fresh

    def _picture_rows(
        self, sample: int, site: str, names: Mapping[str, int | None]
    ) -> Rows:
        parts = [self._pictures[name][site][:count] for name, count in names.items()]
        x = torch.cat(parts)
        number = torch.full((len(x),), sample, dtype=torch.int32)
        position = [torch.arange(len(part)) for part in parts]
        role = torch.full((len(x),), Role.IMAGE, dtype=torch.uint8)
        token = torch.full((len(x),), -1, dtype=torch.int32)
        return Rows(x, number, torch.cat(position).int(), role, token)
