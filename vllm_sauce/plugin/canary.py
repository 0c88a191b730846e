# SPDX-License-Identifier: Apache-2.0
"""Proof, before the server listens, that the op fires in the model as served.

A canary mask, whose edit fires on every token, is put on a dummy batch; the op's
counter must advance and the output must change. A custom op that a stale compiled
graph has dropped, or a site that data goes around, is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.runtime import SauceRuntime, runtime_of
from vllm_sauce.plugin.settings import from_vllm_config
from vllm_sauce.unlearning import Mask, SiteTable

NUM_TOKENS = 16


def install() -> None:
    """Run the canary where each worker class ends its warm-up."""
    for worker in compat.worker_classes():
        compat.wrap(worker, "compile_or_warm_up_model", _after_warm_up)


def _after_warm_up(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    result = original(self, *args, **kwargs)
    if from_vllm_config(self.vllm_config) is not None:
        prove(self.model_runner)
    return result


@torch.inference_mode()
def prove(runner: Any) -> None:
    """Run the canary at every site of a model runner.

    Raises: CanaryError naming the site where the edit did not run.
    """
    runtime = runtime_of(runner.model)
    if runtime is None:
        raise CanaryError("sauce is configured but was not injected into the model")
    runtime.in_canary = True
    try:
        for site in runtime.decoder:
            _prove_decoder(runner, runtime, site)
        if runtime.vision is not None:
            _prove_vision(runner.model, runtime)
    finally:
        runtime.in_canary = False
        runtime.clear_step()
    runtime.proven = True
    compat.logger(__name__).info(
        "sauce: canary passed at %s", ", ".join(sorted(runtime.bundle.sites))
    )


def _a_mask(runtime: SauceRuntime, site: str) -> Mask:
    for name in runtime.bundle.catalogue.names():
        if site in runtime.bundle.catalogue[name].edits:
            return Mask.of([(name, 1.0)], runtime.bundle.digest)
    raise CanaryError(f"no concept of the bundle edits site {site}; nothing to prove")


@contextmanager
def _firing_everywhere(table: SiteTable, slot: int) -> Iterator[None]:
    """Make a resident mask shift every token, whatever the activation; then drop it."""
    table.mask_gate[slot].fill_(float("-inf"))
    table.mask_scale[slot].zero_()
    table.mask_shift[slot].fill_(1.0)
    table.edited_tokens.zero_()
    b_enc = table.b_enc.clone()
    if table.topk:
        # Above all others, so that they rank wherever TopK looks.
        rows = table.mask_latents[slot, : int(table.mask_len[slot])].long()
        table.b_enc[rows] = 1e30
    try:
        yield
    finally:
        table.b_enc.copy_(b_enc)
        table.reset()


def _prove_decoder(runner: Any, runtime: SauceRuntime, site: str) -> None:
    decoder = runtime.decoder[site]
    runtime.clear_step()
    mask = _a_mask(runtime, site)
    with compat.dummy_embeddings(runner, NUM_TOKENS):
        before = _hidden(runner)
        (slot,) = decoder.table.assign([mask])
        with _firing_everywhere(decoder.table, slot):
            decoder.set_spans([mask], [NUM_TOKENS])
            after = _hidden(runner)
            counted = int(decoder.table.edited_tokens.sum())
    runtime.clear_step()
    if counted < NUM_TOKENS:
        raise CanaryError(
            f"site {site}: the op counted {counted} edited tokens of {NUM_TOKENS}: "
            "the compiled model does not run it; clear vLLM's compile cache and start "
            "again"
        )
    if not _changed(before, after):
        raise CanaryError(
            f"site {site}: the op ran, but the model's output did not change"
        )


def _hidden(runner: Any) -> Tensor:
    """Return the model's output for a dummy batch that attends to itself.

    Without ``force_attention`` V1 leaves the attention's output uninitialised, and
    garbage of any size hides the edit.
    """
    hidden: Tensor = runner._dummy_run(NUM_TOKENS, force_attention=True)[0]
    return hidden.float().clone()


def _changed(before: Tensor, after: Tensor) -> bool:
    finite = before.isfinite() & after.isfinite()
    return bool((before != after)[finite].any())


def _prove_vision(model: Any, runtime: SauceRuntime) -> None:
    vision = runtime.vision
    assert vision is not None
    size = model.config.vision_config.image_size
    weight = next(model.parameters())
    pixels = torch.rand(1, 3, size, size, device=weight.device, dtype=weight.dtype)
    before = model.embed_multimodal(pixel_values=pixels)[0].float().clone()
    mask = _a_mask(runtime, "vision")
    (slot,) = vision.table.assign([mask])
    with _firing_everywhere(vision.table, slot), vision.announced.encoding([mask]):
        after = model.embed_multimodal(pixel_values=pixels)[0].float().clone()
        counted = int(vision.table.edited_tokens.sum())
    changed = _changed(before, after)
    if counted == 0 or not changed:
        raise CanaryError(
            f"site vision: the op counted {counted} patches and the image embedding "
            f"{'changed' if changed else 'did not change'}"
        )
