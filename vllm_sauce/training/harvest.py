# SPDX-License-Identifier: Apache-2.0
"""Take a model's activations with the plugin inside vLLM, into shards on the disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vllm_sauce.bundle import fingerprint_model
from vllm_sauce.concepts import VISION, check_site
from vllm_sauce.errors import ActivationsError, ConfigError
from vllm_sauce.plugin import compat
from vllm_sauce.training.samples import Sample, open_picture
from vllm_sauce.training.shards import (
    HARVEST_FILE,
    SAMPLES_FILE,
    HarvestFile,
    SiteFormat,
    read_harvest,
    read_index,
    write_whole,
)

if TYPE_CHECKING:
    from rich.table import Table

FAILURES_FILE = "failures.jsonl"
DTYPES: Final = ("float32", "bfloat16", "float16")
_FIXED = {
    "additional_config",
    "enable_prefix_caching",
    "enforce_eager",
    "model",
    "worker_extension_cls",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HarvestRequest:
    """What is taken, of which model, and where it goes."""

    model: str
    """Folder of the model."""

    sites: tuple[str, ...]
    """ "vision" and "decoder.<i>", all taken in one pass."""

    samples: tuple[Sample, ...]
    """In the order of their numbers; see ``samples.distinct``."""

    out: Path
    """A new folder, or one that a harvest of the same left unfinished."""

    max_tokens: int = 0
    """Tokens the model may write for each sample; their activations are taken too."""

    dtype: str | None = None
    """How rows are stored; None is the model's own."""

    shard_tokens: int = 65_536
    """Tokens of a shard, all sites together."""

    in_flight: int = 256
    """Samples in the engine at the same time: bounds memory."""

    writer: str = "w0"
    """Unique among those that write into the folder at the same time."""

    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """More arguments of ``vllm.LLM``: dtype, max_model_len, ..."""

    def __post_init__(self) -> None:
        if not self.sites:
            raise ConfigError("name a site to harvest: vision or decoder.<i>")
        for site in self.sites:
            check_site(site)
        if len(set(self.sites)) != len(self.sites):
            raise ConfigError(f"each site once, got {', '.join(self.sites)}")
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ConfigError(f"dtype is one of {', '.join(DTYPES)}, got {self.dtype}")
        for name, least in (("max_tokens", 0), ("shard_tokens", 1), ("in_flight", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}")
        if taken := sorted(_FIXED & set(self.engine_args)):
            raise ConfigError(f"harvesting sets {taken[0]} itself; leave it out")


@dataclass(frozen=True, slots=True)
class HarvestReport:
    """What a harvest's folder holds now."""

    num_samples: int
    """Samples on the disk."""
    failed: dict[str, str]
    """Key of each sample that could not be taken, and why."""
    tokens: dict[str, int]
    """Rows by site."""

    def as_table(self, folder: Path, num_repeated: int = 0) -> Table:
        """Return the report for a terminal."""
        from rich.table import Table

        table = Table(show_header=False)
        table.add_row("folder", str(folder))
        table.add_row("samples", str(self.num_samples))
        table.add_row("left out as equal", str(num_repeated))
        table.add_row("failed", str(len(self.failed)))
        for site, count in sorted(self.tokens.items()):
            table.add_row(f"activations at {site}", str(count))
        size = sum(path.stat().st_size for path in folder.iterdir())
        table.add_row("on disk", f"{size / 2**20:.1f} MiB")
        return table


Progress = Callable[[int, int], None]
"""Told the samples that are done and all of them."""


class HarvestEngine:
    """A vLLM with the tap in it; one can harvest into several folders in turn."""

    def __init__(
        self,
        model: str,
        sites: Sequence[str],
        dtype: str | None = None,
        engine_args: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.sites = model, tuple(sites)
        # In this process: what stops a worker (a full disk) is raised here as it is.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        arguments: dict[str, Any] = {
            # Harvesting is prefill, which graphs and compilation do not make faster.
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "worker_extension_cls": "vllm_sauce.plugin.tapping.HarvestWorker",
            **(engine_args or {}),
        }
        settings = {"sites": list(sites), "dtype": dtype or "auto"}
        self.llm = LLM(
            model=model, additional_config={"sauce_harvest": settings}, **arguments
        )
        # On CPUs it says for each prompt that it keeps its threads.
        logging.getLogger("vllm.v1.worker.cpu_worker").setLevel(logging.ERROR)
        config = self.llm.llm_engine.vllm_config.model_config
        stored = dtype or str(config.dtype).removeprefix("torch.")
        self.formats = {
            site: SiteFormat(d_model=_width(config, site), dtype=stored)
            for site in sites
        }


def harvest(
    request: HarvestRequest,
    progress: Progress = lambda done, total: None,
    engine: HarvestEngine | None = None,
) -> HarvestReport:
    """Take the activations of all samples that the folder does not hold yet.

    Every sample is in the folder exactly once, however often this was killed.
    ``engine``: one that is running, for the request's model and sites.

    Raises: ActivationsError, ConfigError
    """
    records = _records(request.samples)
    lines = b"".join(
        json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records
    )
    done = _done(request, lines)
    left = [i for i in range(len(request.samples)) if i not in done]
    progress(len(done), len(request.samples))
    failed: dict[str, str] = {}
    if left:
        if engine is None:
            arguments = request.engine_args
            engine = HarvestEngine(
                request.model, request.sites, request.dtype, arguments
            )
        elif (engine.model, engine.sites) != (request.model, request.sites):
            raise ConfigError("the engine runs another model or taps other sites")
        _check_or_write_header(request, lines, engine)
        pictures = [record["picture"] for record in records]
        run = _Run(engine.llm, request, pictures, progress, len(done))
        failed = run.take(left)
    _write_failures(request.out, failed)
    tokens = dict.fromkeys(request.sites, 0)
    entries = read_index(request.out)
    for entry in entries:
        for site, count in entry.tokens.items():
            tokens[site] += count
    return HarvestReport(sum(len(entry.samples) for entry in entries), failed, tokens)


class _Run:
    """One engine's work: a bounded number of samples in flight, each finished once."""

    def __init__(
        self,
        llm: Any,
        request: HarvestRequest,
        pictures: Sequence[str | None],
        progress: Progress,
        done: int,
    ) -> None:
        """``pictures``: the digest of each sample's picture."""
        self.llm, self.request, self.pictures = llm, request, pictures
        self.progress, self.done = progress, done
        self.failed: dict[str, str] = {}
        self.sample_of: dict[str, int] = {}

    def take(self, numbers: Sequence[int]) -> dict[str, str]:
        """Harvest samples; return the keys of those that failed, with the reasons."""
        request, waiting = self.request, deque(numbers)
        begin = (str(request.out.resolve()), request.writer, request.shard_tokens)
        self.llm.collective_rpc("sauce_harvest_begin", args=begin)
        engine = self.llm.llm_engine
        # A picture that an earlier run encoded must pass the site again.
        engine.reset_encoder_cache()
        try:
            while waiting or engine.has_unfinished_requests():
                while waiting and len(self.sample_of) < request.in_flight:
                    self._enqueue(waiting.popleft())
                # Shards are written between steps: a slow disk slows the engine.
                self._finish([out for out in engine.step() if out.finished])
        finally:
            engine.abort_request(list(self.sample_of))
        self.llm.collective_rpc("sauce_harvest_flush")
        return self.failed

    def _enqueue(self, number: int) -> None:
        from vllm import SamplingParams

        sample = self.request.samples[number]
        params = SamplingParams(
            temperature=0.0,
            # The last token is never fed back, so it has no activations.
            max_tokens=self.request.max_tokens + 1,
            detokenize=False,
            extra_args={"harvest_sample": number},
        )
        refusals: tuple[type[Exception], ...] = (
            ActivationsError,
            *compat.client_errors(),
        )
        try:
            messages = _messages(sample, self.pictures[number])
            (name,) = self.llm.enqueue_chat([messages], params, use_tqdm=False)
        except refusals as error:
            self._fail(number, str(error))
            return
        # vLLM names a request "<id>-<random>" inside and "<id>" in its outputs.
        self.sample_of[name.rsplit("-", 1)[0]] = number

    def _finish(self, outputs: Sequence[Any]) -> None:
        finished = []
        for output in outputs:
            number = self.sample_of.pop(output.request_id)
            (answer,) = output.outputs
            if answer.finish_reason not in ("stop", "length", "repetition"):
                self.llm.collective_rpc("sauce_harvest_drop", args=(number,))
                self._fail(number, f"the engine ended it: {answer.finish_reason}")
                continue
            prompt = len(output.prompt_token_ids)
            written = max(len(answer.token_ids) - 1, 0)
            finished.append((number, prompt, prompt + written))
        if finished:
            self.llm.collective_rpc("sauce_harvest_finish", args=(finished,))
            self._advance(len(finished))

    def _fail(self, number: int, reason: str) -> None:
        self.failed[self.request.samples[number].key] = reason
        self._advance(1)

    def _advance(self, count: int) -> None:
        self.done += count
        self.progress(self.done, len(self.request.samples))


def _messages(sample: Sample, digest: str | None) -> list[dict[str, Any]]:
    """Return a sample as a chat of one message, the picture first."""
    content: list[dict[str, Any]] = [{"type": "text", "text": sample.prompt}]
    if sample.picture is not None:
        part = {"type": "image_pil", "image_pil": open_picture(sample.picture)}
        # Equal pictures are encoded and stored once.
        content.insert(0, {**part, "uuid": digest})
    return [{"role": "user", "content": content}]


def _records(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    keys = [sample.key for sample in samples]
    if not samples:
        raise ConfigError("there is no sample to harvest")
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"two samples have the key {twice!r}")
    return [sample.to_json() for sample in samples]


def _done(request: HarvestRequest, lines: bytes) -> set[int]:
    """Return the numbers of the samples on the disk; refuse another harvest's folder.

    Raises: ActivationsError
    """
    folder = request.out
    if not (folder / HARVEST_FILE).exists():
        # A kill may have left what is written before harvest.json.
        if folder.exists() and any(
            path.name != SAMPLES_FILE and not path.name.startswith(".")
            for path in folder.iterdir()
        ):
            raise ActivationsError(
                f"{folder} holds something else; give a new folder or remove it"
            )
        return set()
    header = read_harvest(folder)
    wanted = hashlib.sha256(lines).hexdigest()
    different = [
        name
        for name, same in (
            ("samples", header.samples_sha256 == wanted),
            ("sites", set(header.sites) == set(request.sites)),
            ("max_tokens", header.max_tokens == request.max_tokens),
            ("model", header.fingerprint == fingerprint_model(request.model)),
        )
        if not same
    ]
    if different:
        raise ActivationsError(
            f"{folder} holds a harvest of other {', '.join(different)}; "
            "give another folder"
        )
    return {number for entry in read_index(folder) for number in entry.samples}


def _check_or_write_header(
    request: HarvestRequest, lines: bytes, engine: HarvestEngine
) -> None:
    """Write harvest.json and samples.jsonl, or check that the stored types fit."""
    path = request.out / HARVEST_FILE
    if path.exists():
        if read_harvest(request.out).sites != engine.formats:
            raise ActivationsError(
                f"{request.out} holds rows of another dtype; give dtype as before"
            )
        return
    request.out.mkdir(parents=True, exist_ok=True)
    write_whole(request.out / SAMPLES_FILE, lines)
    header = HarvestFile(
        model=request.model,
        fingerprint=fingerprint_model(request.model),
        sites=engine.formats,
        samples_sha256=hashlib.sha256(lines).hexdigest(),
        max_tokens=request.max_tokens,
    )
    write_whole(path, header.model_dump_json(indent=1).encode())


def _width(config: Any, site: str) -> int:
    hf = config.hf_config
    if site == VISION:
        return int(hf.vision_config.hidden_size)
    return int(config.get_hidden_size())


def _write_failures(folder: Path, failed: Mapping[str, str]) -> None:
    path = folder / FAILURES_FILE
    if not failed:
        path.unlink(missing_ok=True)
        return
    lines = [json.dumps({"key": k, "reason": v}) + "\n" for k, v in failed.items()]
    write_whole(path, "".join(lines).encode())
