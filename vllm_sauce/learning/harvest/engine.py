# SPDX-License-Identifier: Apache-2.0
"""Take a model's activations with the plugin inside vLLM, into shards on the disk."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vllm_sauce.activations.shards import HarvestFile, SiteFormat
from vllm_sauce.concepts import is_vision
from vllm_sauce.data.samples import Sample, chat_message
from vllm_sauce.errors import SauceError
from vllm_sauce.evaluation.asking.asker import Progress
from vllm_sauce.learning.harvest.folder import (
    HarvestFolder,
    HarvestReport,
    NumberedSample,
    check_or_write,
)
from vllm_sauce.learning.harvest.settings import HarvestRequest
from vllm_sauce.models.architectures import vision_row
from vllm_sauce.plugin import compat

HARVEST_WORKER: Final = "vllm_sauce.plugin.tap.harvest_worker.HarvestWorker"


@dataclass(frozen=True, slots=True)
class HarvestEngine:
    """A vLLM with the tap in it; one can harvest into several folders in turn."""

    llm: Any
    formats: Mapping[str, SiteFormat]
    """What is stored of each site."""

    @classmethod
    def open(cls, request: HarvestRequest) -> HarvestEngine:
        """Start the engine of a request."""
        # In this process: what stops a worker (a full disk) is raised here as it is.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        arguments: dict[str, Any] = {
            # Harvesting is prefill, which graphs and compilation do not make faster.
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "worker_extension_cls": HARVEST_WORKER,
            **request.engine_args,
        }
        sites, dtype = request.sites, request.harvest.dtype
        told = {"sauce_harvest": {"sites": list(sites), "dtype": dtype or "auto"}}
        llm = LLM(model=request.model, additional_config=told, **arguments)
        # On CPUs it says for each prompt that it keeps its threads.
        logging.getLogger("vllm.v1.worker.cpu_worker").setLevel(logging.ERROR)
        config = llm.llm_engine.vllm_config.model_config
        stored = dtype or str(config.dtype).removeprefix("torch.")
        formats = {
            site: SiteFormat(d_model=_width(config, site), dtype=stored)
            for site in sites
        }
        return cls(llm, formats)

    def take(
        self,
        request: HarvestRequest,
        header: HarvestFile,
        samples: Sequence[NumberedSample],
        advance: Callable[[int], None] = lambda count: None,
        writer: str = "w0",
    ) -> dict[str, str]:
        """Harvest samples into the request's folder; return the failed with reasons.

        ``advance`` is told how many more are done. ``writer`` is unique among those
        that write into the folder at the same time.

        Raises: ActivationsError
        """
        check_or_write(request.out, header, self.formats)
        return _Run(self.llm, request, advance).take(samples, writer)


def harvest(
    request: HarvestRequest,
    samples: Sequence[Sample],
    progress: Progress = lambda done, total: None,
    engine: HarvestEngine | None = None,
) -> HarvestReport:
    """Take the activations of all samples that the folder does not hold yet.

    Every sample is in the folder exactly once, however often this was killed.
    ``engine``: one that is running, for the request's model and sites.

    Raises: ActivationsError, ConfigError
    """
    folder = HarvestFolder.open(request, samples)

    def take(advance: Callable[[int], None]) -> dict[str, str]:
        running = engine or HarvestEngine.open(request)
        folder.begin()
        return running.take(request, folder.header, folder.left, advance)

    return folder.fill(take, progress)


@dataclass(frozen=True, slots=True)
class _Run:
    """One engine's work: a bounded number of samples in flight, each finished once."""

    llm: Any
    request: HarvestRequest
    advance: Callable[[int], None]
    failed: dict[str, str] = field(default_factory=dict)
    inside: dict[str, NumberedSample] = field(default_factory=dict)

    def take(self, samples: Sequence[NumberedSample], writer: str) -> dict[str, str]:
        """Harvest samples; return the keys of those that failed, with the reasons."""
        settings, waiting = self.request.harvest, deque(samples)
        begin = (str(self.request.out.resolve()), writer, settings.shard_tokens)
        self.llm.collective_rpc("sauce_harvest_begin", args=begin)
        engine = self.llm.llm_engine
        # A picture that an earlier run encoded must pass the site again.
        engine.reset_encoder_cache()
        try:
            while waiting or engine.has_unfinished_requests():
                while waiting and len(self.inside) < settings.in_flight:
                    self._enqueue(waiting.popleft())
                # Shards are written between steps: a slow disk slows the engine.
                self._finish([out for out in engine.step() if out.finished])
        finally:
            engine.abort_request(list(self.inside))
        self.llm.collective_rpc("sauce_harvest_flush")
        return self.failed

    def _enqueue(self, given: NumberedSample) -> None:
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0,
            # The last token is never fed back, so it has no activations.
            max_tokens=self.request.harvest.max_tokens + 1,
            detokenize=False,
            extra_args={"harvest_sample": given.number},
        )
        if given.sample.problem:
            self._fail(given, given.sample.problem)
            return
        try:
            sample = given.sample
            message = chat_message(sample.prompt, sample.picture, given.picture)
            (name,) = self.llm.enqueue_chat([[message]], params, use_tqdm=False)
        except Exception as error:
            # vLLM and its processors refuse a sample with errors of any kind.
            if compat.is_engine_dead(error):
                raise
            known = isinstance(error, SauceError) and str(error)
            self._fail(given, known or f"{type(error).__name__}: {error}")
            return
        # vLLM names a request "<id>-<random>" inside and "<id>" in its outputs.
        self.inside[name.rsplit("-", 1)[0]] = given

    def _finish(self, outputs: Sequence[Any]) -> None:
        finished = []
        for output in outputs:
            given = self.inside.pop(output.request_id)
            (answer,) = output.outputs
            if answer.finish_reason not in ("stop", "length", "repetition"):
                self.llm.collective_rpc("sauce_harvest_drop", args=(given.number,))
                self._fail(given, f"the engine ended it: {answer.finish_reason}")
                continue
            prompt = list(output.prompt_token_ids)
            # The last one is never fed back.
            tokens = [*prompt, *answer.token_ids[:-1]]
            finished.append((given.number, len(prompt), tokens))
        if finished:
            self.llm.collective_rpc("sauce_harvest_finish", args=(finished,))
            self.advance(len(finished))

    def _fail(self, given: NumberedSample, reason: str) -> None:
        self.failed[given.sample.key] = reason
        self.advance(1)


def _width(config: Any, site: str) -> int:
    if is_vision(site):
        return vision_row(config.hf_config).width(config.hf_config)
    return int(config.get_hidden_size())
