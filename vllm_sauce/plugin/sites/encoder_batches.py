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
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from vllm_sauce.errors import CanaryError, InvalidRequestError
from vllm_sauce.plugin import compat

_all: weakref.WeakSet[Announced] = weakref.WeakSet()


class Announced:
    """The pictures that a model's encoder is about to see, each with a label.

    A batch holds pictures of one label only, and those whose label is not None must
    pass every one of the sites.
    """

    def __init__(self, sites: Collection[str]) -> None:
        self.sites = frozenset(sites)
        self.strict = False
        """Whether a picture nobody announced is an error (not so while profiling)."""
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
        if missed := sum(label is not None for _, label in left.values()):
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

        Raises: CanaryError if a labelled picture did not pass every site.
        """
        self._batch, self._entered = labels, set()
        try:
            yield
        finally:
            self._batch = None
        missed = self.sites - self._entered
        if missed and any(label is not None for label in labels):
            raise CanaryError(
                f"{len(labels)} pictures were encoded without passing "
                f"{', '.join(sorted(missed))}; refusing to serve them unedited"
            )

    def enter(self, site: str) -> Sequence[Any]:
        """Return the labels of the batch in the encoder, for the module at a site.

        Nothing while a model is profiled.

        Raises: CanaryError if the picture was not announced and must have been.
        """
        self._entered.add(site)
        if self._batch is None and self.strict:
            raise CanaryError(
                f"a picture nobody announced entered {site}; refusing to serve it "
                "unedited"
            )
        return self._batch or ()


def refuse_unseen(features: Iterable[Any]) -> None:
    """Refuse what would go around the vision tower, and so around its edit.

    The data of a picture that the engine holds already is not here; the engine core
    looks again when it is.

    Raises: InvalidRequestError.
    """
    for feature in features:
        keys = sorted(feature.data or ())
        made = any(key.startswith("pixel_values") for key in keys)
        if feature.modality != "image" or (
            keys and (not made or any("embed" in key for key in keys))
        ):
            raise InvalidRequestError(
                "the concepts to forget are edited in the vision tower, so pictures "
                f"must be given as pixels; got {feature.modality} of "
                f"{', '.join(keys) or 'no data'}; send the picture itself, of a "
                "video its frames"
            )


def refuse_embeddings(features: Iterable[Any]) -> None:
    """Refuse what no encoder of the model makes: it may be words, and pass for none.

    Raises: InvalidRequestError.
    """
    for feature in features:
        if keys := [key for key in feature.data or () if "embed" in key]:
            raise InvalidRequestError(
                "the concepts to forget are edited in words and not in pictures, so "
                f"nothing may come as embeddings; got {', '.join(sorted(keys))}; send "
                "the picture itself"
            )


def refuse_other_kinds(features: Iterable[Any], kinds: Collection[str]) -> None:
    """Refuse what the served model has no such input for.

    vLLM looks at no name: it encodes what the data's own keys say, takes embeddings
    for the prompt's tokens, or drops the data and reads the tokens as words.

    Raises: InvalidRequestError.
    """
    for feature in features:
        if feature.modality not in kinds:
            raise InvalidRequestError(
                f"a request to forget brings {feature.modality[:64]!r}, which the "
                "served model does not take, so what of it is to be edited is not "
                f"known; it takes {', '.join(sorted(kinds)) or 'text alone'}"
            )


def install() -> None:
    """Cut the batches of both runners."""
    for runner in ("v1", "v2"):
        compat.hook(runner, "group_and_batch_mm_kwargs", _by_label)


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
    at = 0
    for _, run in groupby(labels):
        end = at + len(list(run))
        for modality, num_items, batch in original(mm_kwargs[at:end], **kwargs):
            with announced.encoding(labels[at : at + num_items]):
                yield modality, num_items, batch
            at += num_items
