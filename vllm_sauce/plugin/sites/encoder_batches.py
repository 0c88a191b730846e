# SPDX-License-Identifier: Apache-2.0
"""Which pictures are in the encoder right now, whatever order a runner puts them in.

Both runners list ``(modality, item)`` pairs beside the identifiers under which they
cache the encodings, sort the pairs in their own way, and hand them to
``group_and_batch_mm_kwargs``. A pair is known by its identity from the one place to the
other, so nothing depends on order or on rows: the batches are cut where the label (a
mask, say) changes, and while a batch is encoded its labels are what a site reads.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin import compat

ATTRIBUTE = "_sauce_pictures"
"""Of a model: what announces its pictures, a ``SauceRuntime`` or an ``ActivationTap``,
with ``announce(identifiers, pairs, req_ids)`` and ``finish_pictures()``."""

_all: weakref.WeakSet[Announced] = weakref.WeakSet()
_installed = False


class Announced:
    """The pictures that a model's encoder is about to see, each with a label."""

    def __init__(self, *, split: bool, required: bool) -> None:
        self.split = split
        """Whether a batch may hold pictures of one label only."""
        self.required = required
        """Whether a picture whose label is not None must pass every path."""
        self.strict = False
        """Whether a picture nobody announced is an error (not so while profiling)."""
        self.paths: set[str] = set()
        """Names of the modules that see every picture."""
        self._waiting: dict[int, tuple[Any, Any]] = {}
        self._batch: Sequence[Any] | None = None
        self._entered: set[str] = set()
        _all.add(self)

    def announce(self, pairs: Sequence[Any], labels: Sequence[Any]) -> None:
        """Tell of the next encoder run. A label of None asks for nothing.

        Raises: CanaryError if a labelled picture of the last run was never encoded.
        """
        self.finish()
        # The pair is kept, so that no other object can have its id.
        self._waiting = {
            id(pair): (pair, label) for pair, label in zip(pairs, labels, strict=True)
        }

    def finish(self) -> None:
        """Check that the encoder run took every labelled picture.

        Raises: CanaryError.
        """
        left, self._waiting = self._waiting, {}
        if missed := self._bound(label for _, label in left.values()):
            raise CanaryError(
                f"{missed} pictures that must be edited never came to the encoder; "
                "refusing to serve them unedited"
            )

    def expects(self, pairs: Sequence[Any]) -> bool:
        """Say whether one of these pairs was announced here, and not yet encoded."""
        return any(id(pair) in self._waiting for pair in pairs)

    def labels(self, pairs: Sequence[Any]) -> list[Any]:
        """Return the labels of pairs. Raises: CanaryError for one not announced."""
        found = [self._waiting.pop(id(pair), None) for pair in pairs]
        if unknown := sum(entry is None for entry in found):
            raise CanaryError(
                f"{unknown} of {len(found)} pictures of an encoder run were "
                "never announced; refusing to serve them unedited"
            )
        return [entry[1] for entry in found if entry is not None]

    @contextmanager
    def encoding(self, labels: Sequence[Any]) -> Iterator[None]:
        """Say that a batch of these labels is in the encoder.

        Raises: CanaryError if a labelled picture did not pass every path.
        """
        self._batch, self._entered = labels, set()
        try:
            yield
        finally:
            self._batch = None
        missed = self.paths - self._entered
        if missed and self._bound(labels):
            raise CanaryError(
                f"{len(labels)} pictures were encoded without passing "
                f"{', '.join(sorted(missed))}; refusing to serve them unedited"
            )

    def _bound(self, labels: Iterable[Any]) -> int:
        return sum(label is not None for label in labels) if self.required else 0

    def enter(self, path: str) -> Sequence[Any]:
        """Return the labels of the batch in the encoder, for the module at ``path``.

        Nothing while a model is profiled.

        Raises: CanaryError if the picture was not announced and must have been.
        """
        self._entered.add(path)
        if self._batch is None and self.strict:
            raise CanaryError(
                f"a picture nobody announced entered {path}; refusing to serve it "
                "unedited"
            )
        return self._batch or ()


def install() -> None:
    """Place the hooks of a process that runs a model, once."""
    global _installed
    if _installed:
        return
    _installed = True
    for runner_module in compat.encoder_modules():
        compat.wrap(runner_module, "group_and_batch_mm_kwargs", _by_label)
    runner = compat.runner_v1_cls()
    compat.wrap(runner, "_batch_mm_inputs_from_scheduler", _batch_mm_inputs)
    compat.wrap(runner, "_execute_mm_encoder", _execute_mm_encoder)
    encoder = compat.encoder_runner_cls()
    compat.wrap(encoder, "prepare_mm_inputs", _prepare_mm_inputs)
    compat.wrap(encoder, "execute_mm_encoder", _execute_mm_encoder)


def _by_label(
    original: Callable[..., Any], mm_kwargs: Sequence[Any], **kwargs: Any
) -> Iterator[Any]:
    announced = next((one for one in _all if one.expects(mm_kwargs)), None)
    # None of a model without a site, of a profile run, or of a call within a call,
    # which is about a picture of the batch that is in the encoder already.
    if announced is None:
        yield from original(mm_kwargs, **kwargs)
        return
    labels = announced.labels(mm_kwargs)
    cut = labels if announced.split else [None] * len(labels)
    at = 0
    for _, run in groupby(cut):
        end = at + len(list(run))
        for modality, num_items, batch in original(mm_kwargs[at:end], **kwargs):
            with announced.encoding(labels[at : at + num_items]):
                yield modality, num_items, batch
            at += num_items


def _batch_mm_inputs(
    original: Callable[..., Any], self: Any, scheduler_output: Any, *args: Any
) -> Any:
    batched = original(self, scheduler_output, *args)
    announcer = getattr(self.model, ATTRIBUTE, None)
    if announcer is not None:
        req_ids = list(scheduler_output.scheduled_encoder_inputs)
        announcer.announce(batched[0], batched[1], req_ids)
    return batched


def _prepare_mm_inputs(
    original: Callable[..., Any], self: Any, scheduled_encoder_inputs: Any
) -> Any:
    identifiers, pairs = original(self, scheduled_encoder_inputs)
    announcer = getattr(self.model, ATTRIBUTE, None)
    if announcer is not None:
        announcer.announce(identifiers, pairs, list(scheduled_encoder_inputs))
    return identifiers, pairs


def _execute_mm_encoder(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    outputs = original(self, *args, **kwargs)
    announcer = getattr(self.model, ATTRIBUTE, None)
    if announcer is not None:
        announcer.finish_pictures()
    return outputs
