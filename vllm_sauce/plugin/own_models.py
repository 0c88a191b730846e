# SPDX-License-Identifier: Apache-2.0
"""Tell vLLM of the models that the plugin brings, where sauce is switched on.

In each process that makes an engine's configuration, or is handed one: vLLM keeps its
registry of models by process, and a plain engine's is left as it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from packaging.version import Version

from vllm_sauce.errors import UnsupportedFeatureError, UnsupportedVLLMError
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import settings

MLLAMA: Final = "MllamaForConditionalGeneration"

_SINCE: Final = Version("0.32")
_LEAST_TOKENS: Final = 8192
"""Of a step, where nobody says: vLLM's own default on most devices."""


def install() -> None:
    """Register a model of ours before vLLM looks for its class."""
    compat.hook("all", "EngineArgs.create_model_config", _create_model_config)
    compat.hook("all", "EngineCore._initialize_kv_caches", _initialize)


def register_for(vllm_config: Any) -> None:
    """Register the model of an engine that this process runs a part of."""
    if settings.wants_action(vllm_config) and MLLAMA in (
        vllm_config.model_config.hf_config.architectures or ()
    ):
        _register()


def _register() -> None:
    from vllm import ModelRegistry

    from vllm_sauce.plugin.models.mllama import MllamaForConditionalGeneration

    # Not by its name, which vLLM would look up in a process of its own.
    ModelRegistry.register_model(MLLAMA, MllamaForConditionalGeneration)


def _initialize(
    original: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any
) -> Any:
    register_for(vllm_config)
    return original(self, vllm_config, *args, **kwargs)


def _create_model_config(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> Any:
    if not _asked(self) or MLLAMA not in _architectures(self):
        return original(self, *args, **kwargs)
    _refuse(self)
    _register()
    given = self.hf_overrides
    self.hf_overrides = _crossing
    try:
        model_config = original(self, *args, **kwargs)
    finally:
        self.hf_overrides = given
    # Ours is in the config by now, and an operator's would be refused.
    model_config.hf_overrides = given
    _make_room(self, model_config)
    return model_config


def _asked(args: Any) -> bool:
    harvests = settings.section_of(args, settings.HARVEST_KEY) is not None
    return harvests or settings.requested(args, os.environ) is not None


def _architectures(args: Any) -> list[str]:
    revision = getattr(args, "revision", None)
    folder = compat.local_model_dir(args.model, revision)
    try:
        if folder is None:
            from huggingface_hub import hf_hub_download

            # All of it, the weights too, comes later.
            file = Path(hf_hub_download(args.model, "config.json", revision=revision))
        else:
            file = folder / "config.json"
        config = json.loads(file.read_text("utf-8"))
    except Exception:
        return []  # vLLM says what is wrong with it, or with the name
    return list(config.get("architectures") or ())


def _crossing(config: Any) -> Any:
    """Say in a config that pictures are an encoder's input, and how long."""
    from vllm_sauce.plugin.models.mllama_processor import tokens_per_picture

    if getattr(config, "vision_config", None) is not None:
        config.is_encoder_decoder = True
        config.max_source_positions = tokens_per_picture(config)
    return config


def _refuse(args: Any) -> None:
    """Refuse what cross-attention does not allow, in the operator's words.

    Raises: UnsupportedVLLMError, UnsupportedFeatureError
    """
    # Its processor is written for one generation of vLLM's.
    if Version(Version(compat.vllm_version()).base_version) < _SINCE:
        raise UnsupportedVLLMError(
            f"Llama 3.2 Vision needs vLLM {_SINCE} or later with sauce, this is "
            f"{compat.vllm_version()}"
        )
    found = [
        flag
        for name, flag in (
            ("hf_overrides", "--hf-overrides, which changes the model's config"),
            ("enable_prefix_caching", "--enable-prefix-caching"),
            ("enable_chunked_prefill", "--enable-chunked-prefill"),
        )
        if getattr(args, name, None)
    ]
    if found:
        raise UnsupportedFeatureError(
            f"Llama 3.2 Vision cannot be served with {', '.join(found)}: a picture's "
            "keys are cached in the step that reads its whole prompt; leave it out"
        )


def _make_room(args: Any, model_config: Any) -> None:
    """Let a step hold the longest prompt, and the largest picture.

    Raises: UnsupportedFeatureError
    """
    picture = int(model_config.hf_config.max_source_positions)
    needed = max(int(model_config.max_model_len), picture)
    if args.max_num_batched_tokens is None:
        args.max_num_batched_tokens = max(needed, _LEAST_TOKENS)
    elif args.max_num_batched_tokens < needed:
        raise UnsupportedFeatureError(
            f"--max-num-batched-tokens {args.max_num_batched_tokens} is too few for "
            f"Llama 3.2 Vision, which reads a prompt (--max-model-len "
            f"{model_config.max_model_len}) and a picture ({picture} rows) in one step "
            f"each; give at least {needed}, or leave it out"
        )
