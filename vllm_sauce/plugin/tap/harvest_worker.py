# SPDX-License-Identifier: Apache-2.0
"""Put the tap at its sites in a vLLM model, and tell it what each step holds.

Switched on by ``additional_config["sauce_harvest"]``, which ``training.harvest`` sets.
The sites and the seams are those of the edit (injection.py, runner_v1.py,
runner_v2.py), so what is harvested is what an edit will see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vllm_sauce.activations.shard_writer import ShardWriter
from vllm_sauce.activations.shards import read_index
from vllm_sauce.concepts import VISION, check_site, decoder_layer_idx
from vllm_sauce.errors import ConfigError, UnsupportedFeatureError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.sites import encoder_batches, swap
from vllm_sauce.plugin.startup import features
from vllm_sauce.plugin.startup.settings import HARVEST_KEY
from vllm_sauce.plugin.tap.tap import ActivationTap, Finished, PictureSpan, Span
from vllm_sauce.plugin.worker.injection import PROVEN_LAYERS, PROVEN_VISION
from vllm_sauce.plugin.worker.runner_v2 import offer_model_state

SAMPLE = "harvest_sample"
"""In a request's ``extra_args``: its sample's number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TapSettings:
    """What a worker needs to know to harvest."""

    sites: list[str]
    dtype: str
    """ "float32", "bfloat16", "float16", or "auto": the model's."""

    @classmethod
    def of(cls, vllm_config: Any) -> TapSettings | None:
        """Return the settings of an engine, None if it does not harvest.

        Raises: ConfigError
        """
        additional = vllm_config.additional_config
        section = additional.get(HARVEST_KEY) if isinstance(additional, dict) else None
        if section is None:
            return None
        if "sauce" in additional:
            raise ConfigError(
                "an engine either harvests or edits; its activations would be edited "
                "ones: give only one of 'sauce' and 'sauce_harvest'"
            )
        names = {item.name for item in fields(cls)}
        if not isinstance(section, dict) or set(section) != names:
            raise ConfigError(f"{HARVEST_KEY} must have {', '.join(sorted(names))}")
        return cls(**section)


def install() -> None:
    """Place the hooks of a process that runs the model."""
    compat.wrap(compat.model_loader_cls(), "load_model", _load_model)
    runner = compat.runner_v1_cls()
    compat.wrap(runner, "_prepare_inputs", _prepare_inputs)
    compat.wrap(runner, "_dummy_run", _dummy_run)
    encoder_batches.install()


def tap_of(model: Any) -> ActivationTap | None:
    """Return the tap in a model, None without one."""
    tap: ActivationTap | None = getattr(model, "_sauce_tap", None)
    return tap


class HarvestWorker:
    """vLLM's ``worker_extension_cls``: what the driver asks of a worker."""

    def sauce_harvest_begin(self, folder: str, writer: str, shard_tokens: int) -> None:
        """Write what comes into a folder."""
        done = [name for entry in read_index(Path(folder)) for name in entry.images]
        self._sauce_tap().begin(
            ShardWriter.open(Path(folder), writer, shard_tokens), done
        )

    def sauce_harvest_finish(self, finished: list[tuple[int, int, int]]) -> int:
        """Write finished samples (number, prompt tokens, tokens)."""
        return self._sauce_tap().finish([Finished(*one) for one in finished])

    def sauce_harvest_drop(self, sample: int) -> None:
        """Forget a sample whose request failed."""
        self._sauce_tap().drop(sample)

    def sauce_harvest_flush(self) -> None:
        """Write what is still in memory."""
        writer = self._sauce_tap().writer
        if writer is not None:
            writer.flush()

    def _sauce_tap(self) -> ActivationTap:
        tap = tap_of(self.model_runner.model)  # type: ignore[attr-defined]
        if tap is None:
            raise ConfigError("this engine does not harvest")
        return tap


def _load_model(
    original: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> Any:
    model = original(self, vllm_config, *args, **kwargs)
    settings = TapSettings.of(vllm_config)
    if settings is not None:
        inject(model, vllm_config, settings)
    return model


def inject(model: nn.Module, vllm_config: Any, settings: TapSettings) -> ActivationTap:
    """Place the tap at its sites.

    Raises: UnsupportedFeatureError, ConfigError, ActivationsError
    """
    _check_features(vllm_config, settings)
    dtype: torch.dtype = vllm_config.model_config.dtype
    if settings.dtype != "auto":
        dtype = getattr(torch, settings.dtype)
    tap = ActivationTap(settings.sites, dtype)
    for site in settings.sites:
        if site == VISION:
            _tap_vision(model, tap)
        else:
            _tap_decoder(model, tap, site)
    object.__setattr__(model, "_sauce_tap", tap)
    object.__setattr__(model, encoder_batches.ATTRIBUTE, tap)
    offer_model_state(model, vllm_config, lambda base: _tapped_state(base, tap))
    return tap


def _check_features(vllm_config: Any, settings: TapSettings) -> None:
    features.refuse_unproven(vllm_config, sites=tuple(settings.sites))
    for site in settings.sites:
        check_site(site)
    if not vllm_config.model_config.enforce_eager:
        raise UnsupportedFeatureError("harvesting needs enforce_eager=True")
    if vllm_config.cache_config.enable_prefix_caching:
        raise UnsupportedFeatureError(
            "harvesting needs enable_prefix_caching=False: cached tokens pass no site"
        )


def _tap_decoder(model: nn.Module, tap: ActivationTap, site: str) -> None:
    layers = compat.decoder_layers(model)
    layer_idx = decoder_layer_idx(site)
    if layer_idx is None or layer_idx >= len(layers):
        raise ConfigError(f"the model has {len(layers)} decoder layers, no {site}")
    layer = layers[layer_idx]
    base: Any = type(layer)
    if not any(cls.__name__ in PROVEN_LAYERS for cls in base.__mro__):
        raise UnsupportedFeatureError(
            f"decoder layers of type {base.__name__} are not proven; supported: "
            f"{', '.join(PROVEN_LAYERS)}"
        )

    class TappedLayer(base):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            hidden_states, residual = super().forward(*args, **kwargs)
            tap.take(site, hidden_states, residual)
            return hidden_states, residual

    TappedLayer.__name__ = TappedLayer.__qualname__ = f"Tapped{base.__name__}"
    layer.__class__ = TappedLayer


def _tap_vision(model: nn.Module, tap: ActivationTap) -> None:
    if type(model).__name__ not in PROVEN_VISION:
        raise UnsupportedFeatureError(
            f"the vision site is not proven for {type(model).__name__}; supported: "
            f"{', '.join(PROVEN_VISION)}"
        )
    swap.on_input(model.multi_modal_projector, tap.take_pictures, prefix="Tapped")


def _sample_of(params: Any) -> int | None:
    found = (getattr(params, "extra_args", None) or {}).get(SAMPLE)
    return None if found is None else int(found)


def _pictures(mm_features: Iterable[Any]) -> list[PictureSpan]:
    return [
        PictureSpan(
            item.identifier,
            item.mm_position.offset,
            item.mm_position.length,
            item.mm_position.is_embed,
        )
        for item in mm_features
    ]


def _prepare_inputs(
    original: Callable[..., Any],
    self: Any,
    scheduler_output: Any,
    num_scheduled_tokens: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    tap = tap_of(self.model)
    if tap is not None:
        for new in scheduler_output.scheduled_new_reqs:
            sample = _sample_of(new.sampling_params)
            if sample is not None:
                tap.begin_sample(sample, _pictures(new.mm_features))
        batch = self.input_batch
        tap.begin_step(
            [
                Span(_sample_of(self.requests[name].sampling_params), start, count)
                for name, start, count in zip(
                    batch.req_ids[: batch.num_reqs],
                    batch.num_computed_tokens_cpu[: batch.num_reqs].tolist(),
                    [int(n) for n in num_scheduled_tokens],
                    strict=True,
                )
            ]
        )
    return original(self, scheduler_output, num_scheduled_tokens, *args, **kwargs)


def _dummy_run(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    tap = tap_of(self.model)
    if tap is not None:
        tap.clear_step()
    return original(self, *args, **kwargs)


def _tapped_state(base: Any, tap: ActivationTap) -> type:
    """Return a subclass of V2's ``ModelState`` that tells the tap what a step holds."""

    class TappedModelState(base):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._samples: dict[str, int] = {}

        def add_request(self, req_index: int, new_req_data: Any) -> None:
            sample = _sample_of(new_req_data.sampling_params)
            if sample is not None:
                self._samples[new_req_data.req_id] = sample
                tap.begin_sample(sample, _pictures(new_req_data.mm_features))
            super().add_request(req_index, new_req_data)

        def remove_request(self, req_id: str) -> None:
            self._samples.pop(req_id, None)
            super().remove_request(req_id)

        def prepare_inputs(self, input_batch: Any, req_states: Any) -> Any:
            starts = input_batch.num_computed_tokens_np[: input_batch.num_reqs]
            tap.begin_step(
                [
                    Span(self._samples.get(name), int(start), int(count))
                    for name, start, count in zip(
                        input_batch.req_ids,
                        starts,
                        input_batch.num_scheduled_tokens,
                        strict=True,
                    )
                ]
            )
            return super().prepare_inputs(input_batch, req_states)

        def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> Any:
            tap.clear_step()
            return super().prepare_dummy_inputs(num_reqs, num_tokens)

    return TappedModelState
