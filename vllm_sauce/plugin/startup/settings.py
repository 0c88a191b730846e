# SPDX-License-Identifier: Apache-2.0
"""From flags, ``additional_config`` and environment to one checked configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm_sauce import __version__
from vllm_sauce.bundle import Bundle, hub
from vllm_sauce.concepts import Catalogue
from vllm_sauce.concepts.engine_mode import engine_mode, measured_otherwise, shown
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import (
    BundleMismatchError,
    BundleNotFoundError,
    ConfigError,
    RequestError,
    UnknownConceptError,
)
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import features
from vllm_sauce.unlearning.mask import Mask, check_mandatory, without_decoder
from vllm_sauce.unlearning.merging import check_agreement

ENVIRONMENT = {
    "VLLM_SAUCE_BUNDLE": "bundle",
    "VLLM_SAUCE_FORGET": "forget",
    "VLLM_SAUCE_MAX_LATENTS": "max_latents",
    "VLLM_SAUCE_POOL_DTYPE": "pool_dtype",
    "VLLM_SAUCE_APPROXIMATE": "approximate",
}
"""``VLLM_SAUCE_FORGET`` holds names with commas between, to which those of a flag are
added. Any other flag wins over its variable.

Each of them asks for sauce, as ``--plugin sauce`` does: none that is set is ignored.
"""

_READ_BY_KERNELS = ("VLLM_SAUCE_CACHE", "VLLM_SAUCE_KERNEL", "VLLM_SAUCE_NATIVE")

_SERVICE_LINK = re.compile(
    r"VLLM_SAUCE(_[A-Z0-9_]+)?_"
    r"(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?"
    r"|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes sets in every pod beside a Service named ``vllm-sauce``."""

HARVEST_KEY = "sauce_harvest"
"""In ``additional_config``: an engine that harvests, its ``sites`` and the ``dtype`` to
keep, "float32", "bfloat16", "float16", or "auto": the model's."""

_DERIVED = ("digest", "sites", "version", "num_slots", "max_num_tokens")
"""Written by us beside the user's settings: they key vLLM's compile cache, where a
custom op and its tables' shapes are otherwise invisible and a stale model without it
would be served. A ``digest`` that is there already, as in the arguments of a process
that another started, is compared."""


_NO_DECODER = (
    "mandatory without an edit in the decoder: {}; a question without a picture is "
    "answered as if nothing were forgotten"
)


def install() -> None:
    """Check the settings whenever an engine's configuration is made."""
    compat.hook("all", "EngineArgs.create_engine_config", _create_engine_config)


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings given as ``VLLM_SAUCE_*`` variables.

    Raises: ConfigError for a variable of that prefix nobody reads, or a bad number.
    """
    given: dict[str, Any] = {}
    for name in sorted(n for n in environ if n.startswith("VLLM_SAUCE_")):
        if name in _READ_BY_KERNELS or _SERVICE_LINK.fullmatch(name):
            continue
        if name not in ENVIRONMENT:
            raise ConfigError(
                f"unknown variable {name}; known: "
                f"{', '.join((*ENVIRONMENT, *_READ_BY_KERNELS))}"
            )
        value: Any = environ[name]
        if name == "VLLM_SAUCE_FORGET":
            value = _names(name, value)
        elif name == "VLLM_SAUCE_MAX_LATENTS":
            try:
                value = int(value)
            except ValueError:
                raise ConfigError(
                    f"{name} must be a whole number, got {value!r}"
                ) from None
        given[ENVIRONMENT[name]] = value
    return given


def section_of(vllm_config: Any, key: str = "sauce") -> dict[str, Any] | None:
    """Return what an engine's configuration says of sauce, None without sauce."""
    additional = vllm_config.additional_config
    return additional.get(key) if isinstance(additional, dict) else None


def from_vllm_config(vllm_config: Any) -> SauceConfig | None:
    """Return the configuration an engine runs with, None without sauce.

    Raises: ConfigError.
    """
    section = section_of(vllm_config)
    if section is None:
        return None
    return SauceConfig.from_mapping(
        {key: value for key, value in section.items() if key not in _DERIVED}
    )


def may_have_other_weights(vllm_config: Any) -> bool:
    """Say whether the operator allows the weights, quantised, not to be the bundle's.

    By what vLLM will do, whatever a model's config says of itself.
    """
    config = from_vllm_config(vllm_config)
    allowed = config is not None and config.allow_quantized
    return allowed and vllm_config.model_config.quantization is not None


def wants_action(vllm_config: Any) -> bool:
    """Say whether something is done at the sites of an engine's model."""
    keys = "sauce", HARVEST_KEY
    return any(section_of(vllm_config, key) is not None for key in keys)


def requested(args: Any, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the merged settings, None when nobody asked for sauce.

    Without that no variable is read: a stray one must not end a plain start.

    Raises: ConfigError.
    """
    section = section_of(args)
    if section is None and not any(name in environ for name in ENVIRONMENT):
        return None
    if section is not None and not isinstance(section, Mapping):
        raise ConfigError(
            f"additional_config['sauce'] must be an object, got {section!r}"
        )
    given = {k: v for k, v in (section or {}).items() if k not in _DERIVED}
    return united(from_environment(environ), given)


def united(far: Mapping[str, Any], near: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of two sources: the near one's, and what either makes mandatory.

    To forget more is the safe side: no source takes back what another asks for.
    """
    merged = {**far, **near}
    lists = [source["forget"] for source in (near, far) if "forget" in source]
    # Another type is refused where settings are checked, with what was wanted.
    if len(lists) == 2 and all(isinstance(one, list | tuple) for one in lists):
        merged["forget"] = [*lists[0]]
        merged["forget"] += [name for name in lists[1] if name not in lists[0]]
    return merged


def _names(variable: str, text: str) -> list[str]:
    names = [part.strip() for part in text.split(",")]
    # As of "$CONCEPTS,$MORE" where one is not set: fewer would be forgotten than asked.
    if not all(names):
        raise ConfigError(
            f"{variable} must be names of concepts with commas between, got {text!r}, "
            "where one is blank; name at least one, or leave the variable unset"
        )
    return names


def locate_bundle(given: dict[str, Any], model_dir: Path | None) -> str:
    """Return the bundle's absolute path: as given, else ``sauce/`` beside the weights.

    A name on the hub is fetched.

    Raises: BundleNotFoundError.
    """
    if given.get("bundle") is not None:
        if not isinstance(given["bundle"], (str, os.PathLike)):
            raise ConfigError(f"bundle must be a path, got {given['bundle']!r}")
        return str(hub.bundle_folder(str(given["bundle"])).expanduser().resolve())
    if model_dir is not None and (model_dir / "sauce").is_dir():
        return str((model_dir / "sauce").resolve())
    raise BundleNotFoundError(
        "sauce needs a bundle: give --sauce-bundle PATH, or put one into the model's "
        f"folder as sauce/ (looked in {model_dir or 'a model not on disk yet'})"
    )


def resolve(args: Any) -> Bundle | None:
    """Put the settings that somebody asked for into ``args``, whole and checked.

    ``args`` are a command line's or an engine's: processes that are started later are
    handed them, and find there what to run with whatever they have installed by then.
    Returns the bundle without its weights, None when nobody asked for sauce.

    Raises: ConfigError, BundleError.
    """
    given = requested(args, os.environ)
    if given is None:
        return None
    config = SauceConfig.from_mapping(
        {**given, "bundle": locate_bundle(given, _model_dir(args))}
    )
    bundle = Bundle.load(config.bundle, weights=False)
    wanted = (section_of(args) or {}).get("digest")
    if wanted not in (None, bundle.digest):
        raise BundleMismatchError(
            f"the bundle {config.bundle} changed while the server started: wanted "
            f"{wanted}, found {bundle.digest}; start again"
        )
    _check_concepts(config, bundle.catalogue)
    args.additional_config = {
        **(args.additional_config or {}),
        "sauce": {
            **config.to_mapping(),
            "digest": bundle.digest,
            "sites": sorted(bundle.sites),
            "version": __version__,
        },
    }
    return bundle


def _model_dir(args: Any) -> Path | None:
    # ``vllm serve MODEL`` parses the model into an attribute of its own.
    model = getattr(args, "model_tag", None) or args.model
    return compat.local_model_dir(model, getattr(args, "revision", None))


def _check_concepts(config: SauceConfig, catalogue: Catalogue) -> None:
    try:
        for name in config.allow_weak:
            catalogue.concept(name)
    except UnknownConceptError as error:
        raise ConfigError(f"--sauce-allow-weak: {error}") from error
    check_mandatory(catalogue, config)
    try:
        check_agreement(Mask.of([(name, 1.0) for name in config.forget], ""), catalogue)
    except RequestError as error:
        raise ConfigError(f"mandatory concepts: {error}") from error
    names = without_decoder(config.forget, catalogue)
    if names and config.require_decoder:
        raise ConfigError(
            f"{_NO_DECODER.format(', '.join(names))}, which --sauce-require-decoder "
            "forbids; forget others, or take a bundle that edits them in the decoder"
        )


def table_sizes(vllm_config: Any) -> dict[str, int]:
    """Return the sizes of the edit's tables that an engine's configuration decides."""
    sizes = vllm_config.compilation_config.cudagraph_capture_sizes or [0]
    scheduler = vllm_config.scheduler_config
    return {
        # Every request of a step may carry its own mask, so this many always do.
        "num_slots": scheduler.max_num_seqs,
        "max_num_tokens": int(max(scheduler.max_num_batched_tokens, *sizes, 1)),
    }


def _create_engine_config(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    bundle = resolve(self)
    if bundle is None:
        return original(self, *args, **kwargs)
    vllm_config = original(self, *args, **kwargs)
    features.refuse_unproven(vllm_config, sites=tuple(sorted(bundle.sites)))
    model_dir, other = _model_dir(self), may_have_other_weights(vllm_config)
    if model_dir is not None:
        bundle.check_model(model_dir, allow_quantized=other)
    if not other:
        features.refuse_quantized(vllm_config, model_dir)
    vllm_config.additional_config["sauce"].update(table_sizes(vllm_config))
    _say_what_runs(vllm_config, bundle)
    return vllm_config


def _say_what_runs(vllm_config: Any, bundle: Bundle) -> None:
    config, logger = from_vllm_config(vllm_config), compat.logger(__name__)
    assert config is not None
    logger.info(
        "sauce: bundle %s (%s), sites %s, %d concepts, measured %s, mandatory: %s",
        config.bundle,
        bundle.digest[:12],
        ", ".join(sorted(bundle.sites)),
        len(bundle.catalogue),
        _measured(bundle.together),
        ", ".join(config.forget) or "none",
    )
    if bundle.fingerprint.config is None:
        logger.warning(
            "sauce: this bundle does not say what its model's config.json was, and "
            "another may lie beside equal weights, where nothing is forgotten; if you "
            "know the model's to be that, let the bundle say it: sauce stamp %s MODEL",
            config.bundle,
        )
    if weak := bundle.catalogue.weak():
        refused = set(weak) - set(config.allow_weak)
        logger.warning(
            "sauce: not forgotten, by the bundle's own figures: %s; refused: %s",
            ", ".join(weak),
            ", ".join(sorted(refused)) or "none, all are allowed",
        )
    served = engine_mode(vllm_config)
    if others := measured_otherwise(bundle.catalogue, served):
        logger.warning(
            "sauce: this bundle's concepts were measured in %s, and are served in %s: "
            "measure them as they are served, with sauce eval",
            "; ".join(others),
            shown(served),
        )
    _say_what_was_not_measured(vllm_config)
    if sites := bundle.catalogue.editing_sink():
        logger.warning(
            "sauce: at %s this bundle edits position 0, too, where language models put "
            "attention that has nowhere to go: answers may break; calibrate again, or "
            "leave sink out of the edits' tokens",
            ", ".join(sites),
        )
    if names := without_decoder(config.forget, bundle.catalogue):
        logger.warning(
            "sauce: %s; --sauce-require-decoder refuses such concepts",
            _NO_DECODER.format(", ".join(names)),
        )


def _measured(together: Mapping[int, Mapping[str, float]]) -> str:
    """Return with how many concepts at once, and what of all else was kept then."""
    if not together:
        return "one at a time alone"
    kept = [
        f"{figures[name]:.2f} with {count}"
        for count, figures in sorted(together.items())
        for name in ("kept name", "kept texts")
        if name in figures
    ]
    told = f" (kept of all else: {', '.join(kept)})" if kept else ""
    return f"with up to {max(together)} at once{told}"


def _say_what_was_not_measured(vllm_config: Any) -> None:
    logger = compat.logger(__name__)
    if may_have_other_weights(vllm_config):
        logger.warning(
            "sauce: the model is served quantised (%s), and what this bundle forgets "
            "was measured on its own weights: measure it so, with sauce eval --url",
            vllm_config.model_config.quantization,
        )
    if vllm_config.lora_config is not None:
        logger.warning(
            "sauce: what this bundle forgets was measured without adapters; measure it "
            "under each that is served, with sauce eval --url and the adapter's name"
        )
