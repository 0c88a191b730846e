# SPDX-License-Identifier: Apache-2.0
"""Proof, before the server listens, that the op fires in the model as served.

A canary mask, whose edit fires on every token, is put on a dummy batch; the op's
counter must advance and the output must change. A custom op that a stale compiled
graph has dropped, or a site that data goes around, is found here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.errors import CanaryError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.sites.modules import followed
from vllm_sauce.plugin.startup.settings import from_vllm_config
from vllm_sauce.plugin.worker.cut_check import prove_cut
from vllm_sauce.plugin.worker.form_check import prove_form
from vllm_sauce.plugin.worker.op_check import SIZES, check_op
from vllm_sauce.plugin.worker.runtime import SauceRuntime, runtime_of
from vllm_sauce.unlearning.mask import Mask
from vllm_sauce.unlearning.slots import SiteTable
from vllm_sauce_kernels.masked_edit.plan import BLOCK_LATENTS


def install() -> None:
    """Run the canary where a worker ends its warm-up: the model is as it is served."""
    compat.hook_worker("compile_or_warm_up_model", _after_warm_up)


@torch.inference_mode()
def _after_warm_up(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    if from_vllm_config(self.vllm_config) is None:
        return original(self, *args, **kwargs)
    # vLLM's JIT monitor forbids compiling once the warm-up ends, so the op's kernels
    # are compiled, and compared, before it.
    runner = self.model_runner
    _check_ops(runner)
    with compat.together(stages=True):
        result = original(self, *args, **kwargs)
    _prove_sites(runner)
    return result


@torch.inference_mode()
def prove(runner: Any) -> None:
    """Prove the edit again, after sleep or new weights.

    Raises: CanaryError naming the site where the edit did not run.
    """
    with compat.together(stages=True):
        _runtime(runner).proven = False
    _check_ops(runner)
    _prove_sites(runner)


def _runtime(runner: Any) -> SauceRuntime:
    runtime = runtime_of(runner.model)
    if runtime is None:
        raise CanaryError("sauce is configured but was not injected into the model")
    return runtime


def _prove_sites(runner: Any) -> None:
    with compat.together(stages=True):
        runtime = _runtime(runner)
    started = time.monotonic()
    runtime.proven, runtime.in_canary = False, True
    try:
        with compat.together(stages=True):
            _prove_decoders(runner, runtime)
            if runtime.vision:
                _prove_vision(runner, runtime)
    finally:
        runtime.in_canary = False
        runtime.clear_step()
    runtime.proven = True
    compat.logger(__name__).info(
        "sauce: canary passed at %s in %.1f s",
        ", ".join(sorted(runtime.tables)) or "no site of this stage",
        time.monotonic() - started,
    )


@dataclass(frozen=True)
class DummyBatch:
    """A batch that vLLM runs in a way of its own."""

    num_tokens: int
    uniform_decode: bool = False


def dummy_batches(vllm_config: Any) -> list[DummyBatch]:
    """Return one batch for each way in which vLLM runs a step.

    A uniform decode batch, the smallest and the largest captured size, and a chunk
    larger than any, which runs without a graph.
    """
    scheduler = vllm_config.scheduler_config
    sizes = vllm_config.compilation_config.cudagraph_capture_sizes or [16]
    most = scheduler.max_num_batched_tokens
    counts = {min(size, most) for size in (min(sizes), max(sizes), max(sizes) + 1)}
    decodes = min(scheduler.max_num_seqs, max(sizes), most)
    return [
        DummyBatch(decodes, uniform_decode=True),
        *(DummyBatch(count) for count in sorted(counts)),
    ]


def _check_ops(runner: Any) -> None:
    started = time.monotonic()
    batches = dummy_batches(runner.vllm_config)
    sizes = {*SIZES, *(batch.num_tokens for batch in batches)}
    with compat.together(stages=True):
        runtime = _runtime(runner)
        for site, table in runtime.tables.items():
            if table.checksum() != table.loaded_checksum:
                raise CanaryError(
                    f"site {site}: the SAE's rows on the device are not those that "
                    "were loaded; start again"
                )
            masks = [_masks(runtime, site)[0], _long_mask(runtime, site)]
            masks = masks[-table.num_slots :]
            check_op(table, masks, sizes, runner.model_config.dtype)
    compat.logger(__name__).info(
        "sauce: the op agrees with its reference, %.1f s", time.monotonic() - started
    )


def _masks(runtime: SauceRuntime, site: str) -> list[Mask]:
    """Return masks of single concepts at a site: the smallest and the largest."""
    catalogue = runtime.bundle.catalogue
    found = [
        (len(catalogue[name].edits[site].latents), name)
        for name in catalogue.names()
        if site in catalogue[name].edits
    ]
    if not found:
        raise CanaryError(f"no concept of the bundle edits site {site}; nothing to do")
    names = dict.fromkeys((min(found)[1], max(found)[1]))
    return [Mask.of([(name, 1.0)], runtime.bundle.digest) for name in names]


def _long_mask(runtime: SauceRuntime, site: str) -> Mask:
    """Return a mask whose latents at a site a kernel takes in several blocks.

    Of the largest concept where that is enough, or where all together are not.
    """
    (*_, largest), catalogue = _masks(runtime, site), runtime.bundle.catalogue
    most, names = runtime.tables[site].max_latents, list(largest.names())
    latents = set(catalogue[names[0]].edits[site].latents)
    for name in catalogue.names():
        if len(latents) > BLOCK_LATENTS:
            break
        edit = catalogue[name].edits.get(site)
        if edit is not None and len(more := latents.union(edit.latents)) <= most:
            latents = more
            names.append(name)
    return Mask.of(
        [(name, 1.0) for name in dict.fromkeys(names)], runtime.bundle.digest
    )


@contextmanager
def _firing_everywhere(table: SiteTable, slot: int) -> Iterator[None]:
    """Make a resident mask shift every token, whatever the activation; then drop it."""
    table.mask_gate[slot].fill_(float("-inf"))
    table.mask_scale[slot].zero_()
    # In no simple ratio: rows that write against each other would add up to nothing.
    count = int(table.mask_len[slot])
    table.mask_shift[slot, :count] = torch.linspace(1.0, math.e, count)
    table.edited_tokens.zero_()
    b_enc = table.b_enc.clone()
    if table.topk:
        # Above all others, so that they rank wherever TopK looks.
        table.b_enc[table.mask_latents[slot, :count].long()] = 1e30
    try:
        yield
    finally:
        table.b_enc.copy_(b_enc)
        table.reset()


def _prove_decoders(runner: Any, runtime: SauceRuntime) -> None:
    runtime.clear_step()
    for batch in dummy_batches(runner.vllm_config):
        with compat.dummy_embeddings(runner, batch.num_tokens):
            before = _hidden(runner, batch)
            for site in runtime.decoder:
                _prove_decoder(runner, runtime, site, batch, before)
    for site, layer in runtime.layers.items():
        prove_form(runner, site, followed(runner.model, layer))


def _prove_decoder(
    runner: Any,
    runtime: SauceRuntime,
    site: str,
    batch: DummyBatch,
    before: Tensor | None,
) -> None:
    decoder = runtime.decoder[site]
    mask = _masks(runtime, site)[0]
    (slot,) = decoder.table.assign([mask])
    with _firing_everywhere(decoder.table, slot):
        decoder.set_spans([mask], [batch.num_tokens])
        after = _hidden(runner, batch)
        counted = int(decoder.table.edited_tokens.sum())
    runtime.clear_step()
    # A hybrid model's attention reads other layers' states in a dummy batch's cache:
    # garbage, which may hide any edit, or look like one.
    if before is None or after is None or compat.has_state(runner.model):
        changed = _changes(runner, runtime, site)
    else:
        changed = _changed(before, after)
    with compat.together():
        if counted != batch.num_tokens:
            raise CanaryError(
                f"site {site}: the op counted {counted} edited tokens of a batch of "
                f"{batch.num_tokens}{' decoding' if batch.uniform_decode else ''}: the "
                "model as compiled does not run it as it must; clear vLLM's compile "
                "cache and start again"
            )
        if not changed:
            raise CanaryError(
                f"site {site}: the op ran, but the model's output did not change"
            )


def _changes(runner: Any, runtime: SauceRuntime, site: str) -> bool:
    """Say whether the edit changes what a model makes of a batch without attention."""
    decoder = runtime.decoder[site]
    mask = _masks(runtime, site)[0]
    tokens, _ = compat.tokens_without_graph(runner.vllm_config)
    with compat.dummy_embeddings(runner, tokens):
        before = compat.dummy_output(runner)
        (slot,) = decoder.table.assign([mask])
        with _firing_everywhere(decoder.table, slot):
            decoder.set_spans([mask], [tokens])
            after = compat.dummy_output(runner)
    runtime.clear_step()
    return _changed(before, after)


def _prove_vision(runner: Any, runtime: SauceRuntime) -> None:
    """Prove that pictures pass the sites, and that each site's op changes them."""
    picture, before = prove_cut(runner, runtime)
    for site, vision in runtime.vision.items():
        if (table := vision.table) is None:
            continue
        mask = _masks(runtime, site)[0]
        (slot,) = table.assign([mask])
        with _firing_everywhere(table, slot), vision.announced.encoding([mask]):
            after = picture.embedding()
            counted = int(table.edited_tokens.sum())
        changed = _changed(before, after)
        with compat.together():
            if counted == 0 or not changed:
                raise CanaryError(
                    f"site {site}: the op counted {counted} patches and the image "
                    f"embedding {'changed' if changed else 'did not change'}"
                )


def _hidden(runner: Any, batch: DummyBatch) -> Tensor | None:
    """Return the model's output for a dummy batch that attends to itself.

    None of a stage that is not the last, on V2.

    Without ``force_attention`` V1 leaves the attention's output uninitialised, and
    garbage of any size hides the edit.
    """
    compat.clear_dummy_state(runner.model)
    left = runner._dummy_run(
        batch.num_tokens, force_attention=True, uniform_decode=batch.uniform_decode
    )[0]
    return None if left is None else compat.stream_left(left)


def _changed(before: Tensor, after: Tensor) -> bool:
    finite = before.isfinite() & after.isfinite()
    return bool((before != after)[finite].any())
