# SPDX-License-Identifier: Apache-2.0
"""Put an action into a loaded model, before vLLM profiles, compiles and captures it.

The class of the one module at a site is swapped for a subclass (as
``torch.nn.utils.parametrize`` does), which keeps module names, weights and compilation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from vllm_sauce.bundle import Bundle, weights_sha256
from vllm_sauce.concepts import TRIAL, is_vision
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import BundleMismatchError, UnsupportedFeatureError
from vllm_sauce.models.architectures import vision_row
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.sites import encoder_batches, swap
from vllm_sauce.plugin.sites.action import ATTRIBUTE, SiteAction
from vllm_sauce.plugin.sites.modules import form_of, modules_at
from vllm_sauce.plugin.startup import settings
from vllm_sauce.plugin.startup.weights import refuse_strays
from vllm_sauce.plugin.worker import runner_v1, runner_v2, weights
from vllm_sauce.plugin.worker.runtime import SauceRuntime
from vllm_sauce.unlearning.slots import SiteTable
from vllm_sauce_kernels.masked_edit import native

Inject = Callable[[nn.Module, Any], object]
"""Called with a loaded model and its engine's configuration."""


def install(inject: Inject) -> None:
    """Call ``inject`` with every model a loader returns, also of plain engines."""
    around = functools.partial(_load_model, inject)
    compat.hook("worker", "BaseModelLoader.load_model", around)
    _tell_runners()


@functools.cache
def _tell_runners() -> None:
    encoder_batches.install()
    runner_v1.install()
    runner_v2.install()


def _load_model(
    inject: Inject,
    original: Callable[..., Any],
    self: Any,
    vllm_config: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    model = original(self, vllm_config, *args, **kwargs)
    spec = vllm_config.speculative_config
    loaded = kwargs.get("model_config", args[0] if args else vllm_config.model_config)
    # What a draft model says is said only if the edited model says it, too.
    if (
        spec is None
        or loaded is not spec.draft_model_config
        or loaded is spec.target_model_config
    ):
        inject(model, vllm_config)
    return model


def place(
    model: nn.Module,
    vllm_config: Any,
    action: SiteAction,
    modules: Mapping[str, nn.Module],
) -> None:
    """Put an action at sites of a model and let its runner tell it of each step.

    Raises: UnsupportedVLLMError.
    """
    hf_config = vllm_config.model_config.hf_config
    for site, module in modules.items():
        if is_vision(site):
            swap.on_input(module, action.at_vision(site, module))
        else:
            form = form_of(module)
            swap.on_stream(module, form, action.at_decoder(site, module))
    if vllm_config.model_config.is_encoder_decoder:
        action.picture_word = int(hf_config.image_token_index)
    object.__setattr__(model, ATTRIBUTE, action)
    runner_v2.offer_model_state(model, vllm_config, action)


def inject_edit(model: nn.Module, vllm_config: Any) -> SauceRuntime | None:
    """Place the edit at the bundle's sites; return it, None without sauce.

    Raises: BundleError, ConfigError, UnsupportedVLLMError, UnsupportedFeatureError.
    """
    config = settings.from_vllm_config(vllm_config)
    if config is None:
        return None
    bundle = Bundle.load(config.bundle)
    expected = vllm_config.additional_config["sauce"].get("digest")
    if expected != bundle.digest:
        raise BundleMismatchError(
            f"the bundle {config.bundle} changed while the engine started: wanted "
            f"{expected}, found {bundle.digest}; start again"
        )
    other_weights = check_files(bundle, vllm_config)
    towers = vision_sites(bundle, vllm_config.model_config.hf_config)
    device = next(model.parameters()).device
    # Each stage of a pipeline has its layers' sites, the first those of pictures.
    wanted = dict.fromkeys((*sorted(bundle.sites), *towers))
    modules = modules_at(model, vllm_config.model_config.hf_config, wanted)
    tables = {
        site: _table(bundle, site, vllm_config, config, device)
        for site in modules
        if site in bundle.sites
    }
    sizes = settings.table_sizes(vllm_config)
    here = [site for site in towers if site in modules]
    runtime = SauceRuntime(bundle, tables, sizes["max_num_tokens"], here)
    runtime.weights = other_weights
    place(model, vllm_config, runtime, modules)
    weights.watch(model, runtime)
    if device.type == "cpu":
        native.prepare()
        compat.logger(__name__).info("sauce: C++ loop for decoding %s", native.how())
    return runtime


def check_files(bundle: Bundle, vllm_config: Any) -> str | None:
    """Refuse a model on the disk to which the bundle does not belong.

    Returns the hash of weights that are not the bundle's, by the operator's leave.

    Raises: BundleMismatchError, UnsupportedFeatureError.
    """
    model_config = vllm_config.model_config
    folder = compat.local_model_dir(model_config.model, model_config.revision)
    if folder is None:
        raise BundleMismatchError(
            f"cannot find the files of {model_config.model} to check that the bundle "
            "belongs to them; give a local folder as the model"
        )
    # Of a name, what is read is known only now: it was not on the disk before.
    refuse_strays(vllm_config, folder)
    other = settings.may_have_other_weights(vllm_config)
    bundle.check_model(folder, allow_quantized=other)
    return weights_sha256(folder) if other else None


def vision_sites(bundle: Bundle, hf_config: Any) -> tuple[str, ...]:
    """Return all sites that pictures pass, none if the bundle edits no tower.

    Raises: UnsupportedFeatureError for a concept that would leave them a way around
    """
    if not any(map(is_vision, bundle.sites)):
        return ()
    wanted = tuple(vision_row(hf_config).modules(hf_config))
    for concept in bundle.catalogue.values():
        # Calibration tries parts, too, and says how well the best it finds forgets.
        if concept.scores.get("UAg") is not None or TRIAL in concept.provenance:
            continue
        edited = {site for site in concept.edits if is_vision(site)}
        if edited and (missed := [site for site in wanted if site not in edited]):
            raise UnsupportedFeatureError(
                f"concept {concept.name!r} edits the vision tower, but not at "
                f"{', '.join(missed)}: this model hands on several layers of its "
                "tower, and pictures would go around an edit that nobody has measured; "
                "edit all of these sites, decoder layers alone, or calibrate"
            )
    return wanted


def _table(
    bundle: Bundle, site: str, vllm_config: Any, config: SauceConfig, device: Any
) -> SiteTable:
    table = SiteTable(
        bundle.sites[site].weights,
        bundle.catalogue,
        site,
        # Tokens of several kinds may need a part each of one request's mask.
        num_slots=settings.table_sizes(vllm_config)["num_slots"]
        * bundle.catalogue.token_groups(site),
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
