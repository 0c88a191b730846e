# SPDX-License-Identifier: Apache-2.0
"""Put the op into a loaded model, before vLLM profiles, compiles and captures it.

The class of the one module at a site is swapped for a subclass (as
``torch.nn.utils.parametrize`` does), which keeps module names, weights and compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vllm_sauce.bundle import Bundle
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import (
    BundleMismatchError,
    UnsupportedFeatureError,
)
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.sites import encoder_batches, swap
from vllm_sauce.plugin.startup import settings
from vllm_sauce.plugin.worker import runner_v2
from vllm_sauce.plugin.worker.runtime import (
    KEPT_TENSORS,
    DecoderSite,
    SauceRuntime,
    VisionSite,
)
from vllm_sauce.unlearning.slots import SiteTable
from vllm_sauce_kernels.masked_edit import masked_edit, native

PROVEN_LAYERS = ("LlamaDecoderLayer", "Gemma3DecoderLayer")
"""Decoder layers whose output is known to be ``(hidden_states, residual)``."""

PROVEN_VISION = ("LlavaForConditionalGeneration",)
"""Models whose projector input is the tower's output, one row block per image."""


def install() -> None:
    """Inject into every model a loader returns, when sauce is configured."""
    compat.wrap(compat.model_loader_cls(), "load_model", _load_model)
    encoder_batches.install()


def _load_model(
    original: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> Any:
    model = original(self, vllm_config, *args, **kwargs)
    config = settings.from_vllm_config(vllm_config)
    if config is not None:
        inject(model, vllm_config, config)
    return model


def inject(model: nn.Module, vllm_config: Any, config: SauceConfig) -> SauceRuntime:
    """Place the bundle's sites into a model and return the worker's runtime.

    Raises: BundleError, UnsupportedVLLMError, UnsupportedFeatureError.
    """
    bundle = Bundle.load(config.bundle)
    expected = vllm_config.additional_config["sauce"].get("digest")
    if expected != bundle.digest:
        raise BundleMismatchError(
            f"the bundle {config.bundle} changed while the engine started: wanted "
            f"{expected}, found {bundle.digest}; start again"
        )
    model_config = vllm_config.model_config
    folder = compat.local_model_dir(model_config.model, model_config.revision)
    if folder is None:
        raise BundleMismatchError(
            f"cannot find the files of {model_config.model} to check that the bundle "
            "belongs to them; give a local folder as the model"
        )
    bundle.check_model(folder)
    runtime = SauceRuntime(bundle, config)
    device = next(model.parameters()).device
    for site in sorted(bundle.sites):
        table = _table(bundle, site, vllm_config, config, device)
        if site == "vision":
            _inject_vision(model, runtime, table)
        else:
            _inject_decoder(model, runtime, site, table, vllm_config)
    if device.type == "cpu":
        native.prepare()
        compat.logger(__name__).info("sauce: C++ loop for decoding %s", native.how())
    object.__setattr__(model, "_sauce_runtime", runtime)
    object.__setattr__(model, encoder_batches.ATTRIBUTE, runtime)
    runner_v2.offer_model_state(
        model, vllm_config, lambda base: runner_v2.sauce_model_state(base, runtime)
    )
    return runtime


def _table(
    bundle: Bundle, site: str, vllm_config: Any, config: SauceConfig, device: Any
) -> SiteTable:
    table = SiteTable(
        bundle.sites[site].weights,
        bundle.catalogue,
        site,
        num_slots=settings.table_sizes(vllm_config)["num_slots"],
        # No mask is larger than all of the catalogue's latents together.
        max_latents=min(config.max_latents, len(bundle.catalogue.latents(site)) or 1),
        device=device,
        dtype=vllm_config.model_config.dtype,
        fp8=config.pool_dtype == "fp8",
        approximate=config.approximate,
    )
    compat.logger(__name__).info(
        "sauce: %s keeps %d of %d latents%s in %s on %s, %.1f MiB%s",
        site,
        len(table.pool_latents),
        bundle.sites[site].entry.d_sae,
        " and the whole encoder" if table.topk else "",
        str(table.W_dec_rows.dtype).removeprefix("torch."),
        device,
        table.pool_bytes / 2**20,
        "; TopK taken as ReLU, an approximation" if table.approximate else "",
    )
    return table


def _inject_decoder(
    model: nn.Module,
    runtime: SauceRuntime,
    site: str,
    table: SiteTable,
    vllm_config: Any,
) -> None:
    layer_idx = int(site.split(".")[1])
    layers = compat.decoder_layers(model)
    if layer_idx >= len(layers):
        raise BundleMismatchError(
            f"site {site} wants decoder layer {layer_idx}, the model has {len(layers)}"
        )
    layer = layers[layer_idx]
    if not any(cls.__name__ in PROVEN_LAYERS for cls in type(layer).__mro__):
        raise UnsupportedFeatureError(
            f"decoder layers of type {type(layer).__name__} are not proven; supported: "
            f"{', '.join(PROVEN_LAYERS)}"
        )
    decoder = DecoderSite(table, settings.table_sizes(vllm_config)["max_num_tokens"])
    layer.register_buffer(
        "sauce_slot_of_token", decoder.slot_of_token, persistent=False
    )
    layer.register_buffer("sauce_plan", decoder.plan, persistent=False)
    _keep(layer, table)
    layer.sauce_topk, layer.sauce_normalize = table.topk, table.normalize
    layer.__class__ = _edited_layer(type(layer))
    runtime.decoder[site] = decoder


def _keep(module: nn.Module, table: SiteTable) -> None:
    """Make a site's tensors buffers of its module."""
    for name in KEPT_TENSORS:
        module.register_buffer(f"sauce_{name}", getattr(table, name), persistent=False)


def _edited_layer(base: type) -> type:
    """Return a subclass of a decoder layer that edits the residual stream it leaves.

    The stream is the sum of the two tensors; the change is added to the first.
    """

    class EditedLayer(base):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
            hidden_states, residual = super().forward(*args, **kwargs)
            masked_edit(
                hidden_states,
                residual,
                self.sauce_slot_of_token,
                self.sauce_mask_latents,
                self.sauce_mask_scale,
                self.sauce_mask_shift,
                self.sauce_mask_gate,
                self.sauce_mask_len,
                self.sauce_W_enc_rows,
                self.sauce_W_dec_rows,
                self.sauce_b_enc,
                self.sauce_edited_tokens,
                self.sauce_topk,
                self.sauce_normalize,
                self.sauce_plan,
            )
            return hidden_states, residual

    EditedLayer.__name__ = f"Sauce{base.__name__}"
    EditedLayer.__qualname__ = EditedLayer.__name__
    return EditedLayer


def _inject_vision(model: nn.Module, runtime: SauceRuntime, table: SiteTable) -> None:
    if type(model).__name__ not in PROVEN_VISION:
        raise UnsupportedFeatureError(
            f"the vision site is not proven for {type(model).__name__}; supported: "
            f"{', '.join(PROVEN_VISION)}"
        )
    site = VisionSite(table)
    projector: Any = model.multi_modal_projector
    _keep(projector, table)
    swap.on_input(projector, site.edit, prefix="Sauce")
    runtime.vision = site
