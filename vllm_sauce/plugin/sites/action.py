# SPDX-License-Identifier: Apache-2.0
"""What is done at a model's sites, and what a runner tells of each step.

There is one seam into a model: its modules (``swap``), its pictures
(``encoder_batches``) and its steps (``worker/runner_v1``, ``runner_v2``). An action
edits there (``worker/runtime``) or copies (``tap/tap``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin.sites.encoder_batches import Announced
from vllm_sauce.plugin.sites.tokens import PromptTokens

StreamAct = Callable[[Any, Tensor, Tensor | None], None]
"""Called with a layer, hidden_states and residual [num_tokens or more, d_model], whose
sum is the residual stream (None: the first is); it may write into the first."""

FeaturesAct = Callable[[Tensor], Tensor]
"""Called with features [..., d_model] of the pictures in the encoder; returns those to
go on with."""

ATTRIBUTE = "_sauce_action"
"""Of a model: its action."""


class SiteAction(ABC):
    """One per loaded model. A request's label is its mask, or its sample's number."""

    announced: Announced | None = None
    """The pictures of the encoder, where vision sites look at them."""

    picture_word: int | None = None
    """The token of a prompt that stands for a whole picture, where text attends to
    pictures across."""

    def __init__(self) -> None:
        self.live: dict[str, Any] = {}
        """Labels of the requests that a runner holds."""
        self.prompts: dict[str, PromptTokens] = {}
        """The prompts of the labelled requests that a runner holds."""
        self.in_canary = False
        """True while the canary itself drives dummy runs."""
        self.changes = 0
        """How often a request began or ended."""

    def add_request(self, req_id: str, params: Any, new_request: Any) -> None:
        """Expect a request, as vLLM's scheduler tells of it; a preempted one again."""
        label = self.label_of(getattr(params, "extra_args", None))
        self.changes += 1
        self.live[req_id] = label
        if label is not None:
            self.prompts[req_id] = PromptTokens.of(new_request, self.picture_word)
        self.begin_request(label, new_request.mm_features)

    def remove_request(self, req_id: str) -> None:
        """Expect no more of a request."""
        self.changes += 1
        self.live.pop(req_id, None)
        self.prompts.pop(req_id, None)

    def tell_step(
        self,
        req_ids: Sequence[str],
        starts: np.ndarray,
        num_tokens: np.ndarray,
        held: Container[str] | None = None,
    ) -> None:
        """Tell of the next forward pass by its requests, in the order of its batch.

        ``held``: requests that the runner holds, where a batch may have dummies, too.

        Shapes: starts, num_tokens [num_reqs]
        Raises: CanaryError for a request that nobody told of, ValueError for others'
            numbers
        """
        if not len(req_ids) == len(starts) == len(num_tokens):
            raise ValueError(
                f"{len(req_ids)} requests have {len(starts)} positions and "
                f"{len(num_tokens)} numbers of tokens"
            )
        if not all(map(self.live.__contains__, req_ids)):
            for req_id in set(req_ids) - self.live.keys():
                if held is None or req_id in held:
                    raise CanaryError(
                        f"request {req_id!r} is in a batch and was never told of; "
                        "refusing to serve it unedited"
                    )
        if not self.prompts:  # nobody asks for anything
            req_ids, starts, num_tokens = (), starts[:0], num_tokens[:0]
        self.begin_step(req_ids, starts, num_tokens)

    @abstractmethod
    def label_of(self, extra_args: Mapping[str, Any] | None) -> Any:
        """Return a request's label, None for one that asks for nothing."""

    def begin_request(self, label: Any, mm_features: Iterable[Any]) -> None:  # noqa: B027
        """Expect a request's tokens; a preempted one may begin again."""

    @abstractmethod
    def begin_step(
        self, req_ids: Sequence[str], starts: np.ndarray, num_tokens: np.ndarray
    ) -> None:
        """Tell of the next forward pass, in the order of its batch.

        A batch of which no request has a label may be told of as an empty one; one that
        is not live is a dummy.

        Shapes: starts, num_tokens [num_reqs]; starts are positions
        """

    @abstractmethod
    def clear_step(self) -> None:
        """Tell of a pass of dummy tokens."""

    def announce(
        self, identifiers: Sequence[str], pairs: Sequence[Any], req_ids: Sequence[str]
    ) -> None:
        """Tell of the pictures of the next encoder run."""
        if self.announced is not None:
            self.announced.announce(pairs, self.picture_labels(identifiers, req_ids))

    @abstractmethod
    def picture_labels(
        self, identifiers: Sequence[str], req_ids: Sequence[str]
    ) -> Sequence[Any]:
        """Return the label of each picture, None for one that asks for nothing."""

    @abstractmethod
    def at_decoder(self, site: str, layer: Any) -> StreamAct:
        """Prepare a decoder layer; return what acts on the stream that it leaves."""

    @abstractmethod
    def at_vision(self, site: str, connector: Any) -> FeaturesAct:
        """Prepare what comes after the tower; return what acts on its input."""


def run_encoder(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    """Check that a runner's encoder run passed the site. Raises: CanaryError."""
    outputs = original(self, *args, **kwargs)
    action = action_of(self.model)
    if action is not None and action.announced is not None:
        action.announced.finish()
    return outputs


def action_of(model: Any) -> SiteAction | None:
    """Return the action in a model, None without one."""
    action: SiteAction | None = getattr(model, ATTRIBUTE, None)
    return action
