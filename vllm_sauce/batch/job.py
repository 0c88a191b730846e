# SPDX-License-Identifier: Apache-2.0
"""All that decides a run's answers, and what tells one run from another."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vllm_sauce import __version__
from vllm_sauce.batch.rows import Row
from vllm_sauce.batch.settings import BatchRequest, Defaults
from vllm_sauce.bundle import hub
from vllm_sauce.bundle.fingerprint import weights_sha256
from vllm_sauce.client import check_strength, forget
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import ConfigError
from vllm_sauce.files import file_sha256
from vllm_sauce.options import check_at_least
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.frontend.admission import Admission
from vllm_sauce.plugin.startup import settings

_OURS = {"additional_config", "model"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What an actor needs to answer any chunk; travels to it pickled."""

    model: str
    """A folder, or a name on the hub."""

    sauce: SauceConfig | None
    """None serves the plain model; rows that forget something then fail."""

    digest: str | None
    """Digest of the bundle that every actor must have loaded."""

    defaults: Defaults
    folder: str
    """Pictures' paths are relative to it."""

    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of vLLM's ``LLM``, besides model and bundle."""


def make_job(request: BatchRequest) -> Job:
    """Check all that can be checked before an engine starts.

    Raises: ConfigError, BundleError, RequestError
    """
    model, defaults = request.model, request.defaults
    _check_defaults(defaults)
    if clash := sorted(request.engine_args.keys() & _OURS):
        raise ConfigError(f"{clash[0]!r} is no engine argument here; see --help")
    pinned = dict(request.engine_args)
    is_folder = Path(model).is_dir()
    model_dir = compat.local_model_dir(model, pinned.get("revision"))
    if not is_folder:
        # A branch may move while the run is interrupted; its commit does not.
        pinned["revision"] = (
            model_dir.name if model_dir else _commit(model, pinned.get("revision"))
        )
    sauce, digest = _sauce(request.bundle, model_dir, defaults)
    return Job(
        model=str(Path(model).resolve()) if is_folder else model,
        sauce=sauce,
        digest=digest,
        defaults=defaults,
        folder=str(request.source.resolve().parent),
        engine_args=pinned,
    )


def identity(job: Job, source_sha256: str, rows_per_part: int) -> dict[str, object]:
    """Return what parts are told apart by; whose parts are joined is equal in all."""
    folder = Path(job.model)
    sauce = job.sauce.to_mapping() if job.sauce else None
    if sauce is not None:
        del sauce["bundle"]  # Its digest says what it is, wherever it lies.
    return {
        "bundle": job.digest,
        "defaults": asdict(job.defaults),
        "engine_args": dict(job.engine_args),
        "input": source_sha256,
        "model": _model_identity(folder) if folder.is_dir() else job.model,
        "rows_per_part": rows_per_part,
        "sauce": sauce,
        "vllm_sauce": __version__,
    }


def _check_defaults(defaults: Defaults) -> None:
    check_strength(defaults.strength)
    check_at_least(defaults, 1, "max_tokens")
    if not 0 <= defaults.temperature < float("inf"):
        raise ConfigError(f"temperature must be at least 0, got {defaults.temperature}")
    column = defaults.forget_column
    if column != "forget" and (column in Row.model_fields or not column):
        raise ConfigError(
            f"the masks cannot be in {column!r}, which has a meaning of its own"
        )


def _sauce(
    bundle: str | None, model_dir: Path | None, defaults: Defaults
) -> tuple[SauceConfig | None, str | None]:
    given = settings.from_environment(os.environ)
    if bundle is not None:
        given["bundle"] = bundle
    if defaults.allow_weak:
        given["allow_weak"] = list(defaults.allow_weak)
    beside = model_dir is not None and (model_dir / "sauce").is_dir()
    if not given and not beside:
        if defaults.forget:
            raise ConfigError(
                "there is no bundle to forget with: give --bundle, or put one into the "
                "model's folder as sauce/"
            )
        return None, None
    name = str(given.get("bundle") or "")
    path = settings.locate_bundle(given, model_dir)
    local = SauceConfig.from_mapping({**given, "bundle": path})
    # It must be the model's, and have all that the run forgets.
    admission = Admission.open(local)
    if model_dir is not None:
        allowed = local.allow_quantized
        admission.bundle.check_model(model_dir, allow_quantized=allowed)
    names = defaults.forget
    admission.resolve(forget(*names, strength=defaults.strength) if names else None)
    if hub.is_hub_name(name):
        # Other machines fetch the same commit; this one's path says nothing to them.
        path = f"{hub.HubName.parse(name).repo}@{Path(path).name}"
    return SauceConfig.from_mapping({**given, "bundle": path}), admission.bundle.digest


def _commit(model: str, revision: str | None) -> str:
    try:
        return hub.commit_now(model, revision)
    except ConfigError as error:
        raise ConfigError(
            f"{model!r} is neither a folder nor a model on the hub: {error}"
        ) from error


def _model_identity(folder: Path) -> dict[str, str | None]:
    small = {
        path.name: file_sha256(path)
        for pattern in ("*.json", "*.jinja", "*.model", "*.txt")
        for path in folder.glob(pattern)
    }
    return {"weights": weights_sha256(folder)} | small
