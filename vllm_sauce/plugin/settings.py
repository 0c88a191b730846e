# SPDX-License-Identifier: Apache-2.0
"""From flags, ``additional_config`` and environment to one checked configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vllm_sauce import __version__
from vllm_sauce.bundle import Bundle, hub
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import BundleNotFoundError, ConfigError
from vllm_sauce.plugin import compat, features
from vllm_sauce.unlearning import check_mandatory

ENVIRONMENT = {
    "VLLM_SAUCE_BUNDLE": "bundle",
    "VLLM_SAUCE_FORGET": "forget",
    "VLLM_SAUCE_MAX_LATENTS": "max_latents",
    "VLLM_SAUCE_POOL_DTYPE": "pool_dtype",
    "VLLM_SAUCE_APPROXIMATE": "approximate",
}
"""``VLLM_SAUCE_FORGET`` holds names with commas between. A flag wins over these."""

_READ_BY_KERNELS = ("VLLM_SAUCE_CACHE", "VLLM_SAUCE_KERNEL", "VLLM_SAUCE_NATIVE")

HARVEST_KEY = "sauce_harvest"
"""In ``additional_config``: what ``tapping.TapSettings`` reads."""

_DERIVED = ("digest", "sites", "version")
"""Written by us beside the user's settings: they key vLLM's compile cache, where a
custom op is otherwise invisible and a stale model without it would be served."""


def install() -> None:
    """Check the settings whenever an engine's configuration is made."""
    compat.wrap(compat.engine_args_cls(), "create_engine_config", _create_engine_config)


def from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings given as ``VLLM_SAUCE_*`` variables.

    Raises: ConfigError for a variable of that prefix nobody reads, or a bad number.
    """
    given: dict[str, Any] = {}
    for name in sorted(n for n in environ if n.startswith("VLLM_SAUCE_")):
        if name in _READ_BY_KERNELS:
            continue
        if name not in ENVIRONMENT:
            raise ConfigError(
                f"unknown variable {name}; known: "
                f"{', '.join((*ENVIRONMENT, *_READ_BY_KERNELS))}"
            )
        value: Any = environ[name]
        if name == "VLLM_SAUCE_FORGET":
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif name == "VLLM_SAUCE_MAX_LATENTS":
            try:
                value = int(value)
            except ValueError:
                raise ConfigError(
                    f"{name} must be a whole number, got {value!r}"
                ) from None
        given[ENVIRONMENT[name]] = value
    return given


def from_vllm_config(vllm_config: Any) -> SauceConfig | None:
    """Return the configuration an engine runs with, None without sauce.

    Raises: ConfigError.
    """
    additional = vllm_config.additional_config
    section = additional.get("sauce") if isinstance(additional, dict) else None
    if section is None:
        return None
    return SauceConfig.from_mapping(
        {key: value for key, value in section.items() if key not in _DERIVED}
    )


def harvests(vllm_config: Any) -> bool:
    """Say whether an engine takes activations instead of editing them."""
    additional = vllm_config.additional_config
    return isinstance(additional, dict) and HARVEST_KEY in additional


def requested(engine_args: Any, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the merged settings, None when nobody asked for sauce."""
    additional = engine_args.additional_config
    section = additional.get("sauce") if isinstance(additional, dict) else None
    from_env = from_environment(environ)
    if section is None and not from_env:
        return None
    if section is not None and not isinstance(section, Mapping):
        raise ConfigError(
            f"additional_config['sauce'] must be an object, got {section!r}"
        )
    given = {k: v for k, v in (section or {}).items() if k not in _DERIVED}
    return {**from_env, **given}


def locate_bundle(given: dict[str, Any], model_dir: Path | None) -> str:
    """Return the bundle's absolute path: as given, else ``sauce/`` beside the weights.

    A name on the hub is fetched.

    Raises: BundleNotFoundError.
    """
    if given.get("bundle") is not None:
        if not isinstance(given["bundle"], (str, os.PathLike)):
            raise ConfigError(f"bundle must be a path, got {given['bundle']!r}")
        if hub.is_hub_name(str(given["bundle"])):
            return str(hub.pull(hub.HubName.parse(str(given["bundle"]))).resolve())
        return str(Path(given["bundle"]).expanduser().resolve())
    if model_dir is not None and (model_dir / "sauce").is_dir():
        return str((model_dir / "sauce").resolve())
    raise BundleNotFoundError(
        "sauce needs a bundle: give --sauce-bundle PATH, or put one into the model's "
        f"folder as sauce/ (looked in {model_dir or 'a model not on disk yet'})"
    )


def _create_engine_config(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    given = requested(self, os.environ)
    if given is None:
        return original(self, *args, **kwargs)
    model_dir = compat.local_model_dir(self.model, getattr(self, "revision", None))
    config = SauceConfig.from_mapping(
        {**given, "bundle": locate_bundle(given, model_dir)}
    )
    bundle = Bundle.load(config.bundle, weights=False)
    check_mandatory(
        config.forget, bundle.catalogue, config.max_latents, config.max_concepts
    )
    if model_dir is not None:
        bundle.check_model(model_dir)
    self.additional_config = {
        **(self.additional_config or {}),
        "sauce": {
            **config.to_mapping(),
            "digest": bundle.digest,
            "sites": sorted(bundle.sites),
            "version": __version__,
        },
    }
    vllm_config = original(self, *args, **kwargs)
    features.refuse_unproven(vllm_config, sites=tuple(sorted(bundle.sites)))
    compat.logger(__name__).info(
        "sauce: bundle %s (%s), sites %s, %d concepts, mandatory: %s",
        config.bundle,
        bundle.digest[:12],
        ", ".join(sorted(bundle.sites)),
        len(bundle.catalogue),
        ", ".join(config.forget) or "none",
    )
    return vllm_config
