# SPDX-License-Identifier: Apache-2.0
"""SAELens' ``cfg.json``, of version 6 and before, in the words of version 6."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.config_keys import check_keys, names
from vllm_sauce.sae.normalization import check_normalization
from vllm_sauce.sae.weights import check_architecture

_RENAMED: Final = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}

USED: Final = names(
    "activation_fn activation_fn_kwargs apply_b_dec_to_input architecture "
    "finetuning_scaling_factor hook_name k normalize_activations "
    "rescale_acts_by_decoder_norm reshape_activations"
)
"""Keys that say what the SAE computes."""

INERT: Final = names(
    # The tensors have their own sizes and types; nothing in the metadata is computed.
    "d_in d_sae dtype device metadata "
    # Where it was trained, and on what.
    "context_size dataset_path dataset_trust_remote_code disable_concat_sequences "
    "exclude_special_tokens hf_hook_name hook_eval hook_head_index hook_layer "
    "local_model_path "
    "hook_point_eval hook_point_head_index hook_point_layer is_dataset_tokenized "
    "model_class_name model_from_pretrained_kwargs model_kwargs model_name "
    "neuronpedia_id prepend_bos sae_lens_training_version sae_lens_version "
    "seqpos_slice sequence_separator_token streaming use_chat_formatting "
    # How the activations came.
    "act_store_device activations_mixing_fraction autocast autocast_lm "
    "cached_activations_path compile_llm compile_sae llm_compilation_mode llm_device "
    "n_batches_for_norm_estimate n_batches_in_buffer prefetch_llm_batches "
    "sae_compilation_mode store_batch_size store_batch_size_prompts "
    "tokens_per_buffer use_cached_activations "
    # How it was trained.
    "adam_beta1 adam_beta2 aux_loss_coefficient b_dec_init_method "
    "dead_feature_estimation_method dead_feature_threshold dead_feature_window "
    "decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm "
    "decoder_orthogonal_init expansion_factor feature_reinit_scale "
    "feature_sampling_method feature_sampling_window finetuning_method "
    "finetuning_tokens from_pretrained_path init_encoder_as_decoder_transpose "
    "jumprelu_bandwidth jumprelu_init_threshold jumprelu_sparsity_loss_mode "
    "jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient l0_warm_up_steps "
    "l1_coefficient l1_warm_up_steps lp_norm lr lr_decay_steps lr_end "
    "lr_scheduler_name lr_warm_up_steps mse_loss_normalization n_restart_cycles "
    "noise_scale normalize_sae_decoder pre_act_loss_coefficient resample_batches "
    "scale_sparsity_penalty_by_decoder_norm seed target_l0 total_training_tokens "
    "train_batch_size train_batch_size_tokens training_tokens use_ghost_grads "
    "use_sparse_activations "
    # What was logged and kept.
    "checkpoint_path eval_batch_size_prompts eval_every_n_wandb_logs "
    "log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb "
    "log_weights_to_wandb logger n_checkpoints n_eval_batches n_eval_seqs output_path "
    "resume resume_from_checkpoint run_name save_final_checkpoint verbose wandb_entity "
    "wandb_id wandb_log_frequency wandb_project"
)
"""Keys that change nothing of it: those of SAELens' classes from 0.1 to 6.54, and of
SAELens-V, a relative of version 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SAELensConfig:
    """What a cfg.json says of the maths."""

    architecture: str
    """One of ours, or "gated"."""

    k: int | None
    """Latents that a token keeps; "topk" only."""

    normalize_activations: str
    apply_b_dec_to_input: bool

    rescale_acts_by_decoder_norm: bool
    """Whether latents are multiplied by their decoder's norm before they are chosen."""

    finetuning_scaling_factor: bool
    """Whether a factor for every latent's activation lies among the tensors."""


def parse_config(cfg: Mapping[str, object], source: object) -> SAELensConfig:
    """Return what a cfg.json says, refusing what cannot be served or is not known.

    Raises: UnsupportedSAEError
    Source: SAELens 6.54, ``handle_pre_6_0_config``
    """
    for old, new in _RENAMED.items():
        if old in cfg and cfg[old] != cfg.get(new, cfg[old]):
            raise UnsupportedSAEError(
                f"{source}: {old} {cfg[old]!r} and {new} {cfg[new]!r} must agree"
            )
    known = {_RENAMED.get(name, name): value for name, value in cfg.items()}
    check_keys(known, source, used=USED, inert=INERT)
    architecture = known.get("architecture", "standard")
    if not isinstance(architecture, str):
        raise UnsupportedSAEError(
            f"{source}: architecture must be a name, got {architecture!r}"
        )
    architecture = _activated(architecture, known, source)
    if architecture != "gated":
        check_architecture(architecture)
    rescale = _flag(known, "rescale_acts_by_decoder_norm", False, source)
    if rescale and architecture != "topk":
        raise UnsupportedSAEError(
            f"{source}: rescale_acts_by_decoder_norm is known for topk SAEs only, got "
            f"{architecture!r}; fold the norm into the weights first"
        )
    _check_reshaping(known, source)
    return SAELensConfig(
        architecture=architecture,
        k=_k_of(known, source) if architecture == "topk" else None,
        normalize_activations=_normalization(known, source),
        apply_b_dec_to_input=_flag(known, "apply_b_dec_to_input", True, source),
        rescale_acts_by_decoder_norm=rescale,
        finetuning_scaling_factor=_flag(
            known, "finetuning_scaling_factor", False, source
        ),
    )


def _activated(architecture: str, cfg: Mapping[str, object], source: object) -> str:
    """Return the architecture, which before version 6 the activation could decide."""
    default = "topk" if architecture == "topk" else "relu"
    activation = cfg.get("activation_fn") or default
    if activation == "topk" and architecture in ("standard", "topk"):
        return "topk"
    if activation != default:
        raise UnsupportedSAEError(
            f"{source}: activation_fn must be 'relu', or 'topk' for a standard or topk "
            f"SAE; got {activation!r} for {architecture!r}"
        )
    return architecture


def _k_of(cfg: Mapping[str, object], source: object) -> int:
    more = cfg.get("activation_fn_kwargs") or {}
    if not isinstance(more, dict) or more.keys() - {"k"} not in (set(), {"signed"}):
        raise UnsupportedSAEError(
            f"{source}: activation_fn_kwargs may say k and nothing else, got {more!r}"
        )
    if more.get("signed", False) is not False:
        raise UnsupportedSAEError(
            f"{source}: signed activations cannot be served, got {more!r}"
        )
    k = more.get("k", cfg.get("k"))
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise UnsupportedSAEError(
            f"{source}: a topk SAE needs a whole k >= 1, got {k!r}"
        )
    return k


def has_factor(cfg: Mapping[str, object]) -> bool:
    """Return whether its trainer scaled inputs by a factor that no file holds."""
    # True was the only normalisation there was when it was a flag.
    return cfg.get("normalize_activations") in (True, "expected_average_only_in")


def _normalization(cfg: Mapping[str, object], source: object) -> str:
    name = cfg.get("normalize_activations") or "none"
    if has_factor(cfg):
        raise UnsupportedSAEError(
            f"{source}: normalize_activations is 'expected_average_only_in', a factor "
            "that no file holds. SAELens folds it into the weights when training ends, "
            "and its version 3 wrote this all the same: import such a folder (SAE-V's, "
            "any final_*) with --factor-folded. For a checkpoint of before, "
            "fold_activation_norm_scaling_factor first"
        )
    return check_normalization(str(name))


def _check_reshaping(cfg: Mapping[str, object], source: object) -> None:
    hook = cfg.get("hook_name")
    by_name = "hook_z" if isinstance(hook, str) and "hook_z" in hook else "none"
    reshape = cfg.get("reshape_activations", by_name)
    if reshape not in (None, "none"):
        raise UnsupportedSAEError(
            f"{source}: reshape_activations must be 'none', got {reshape!r}"
        )


def _flag(cfg: Mapping[str, object], name: str, default: bool, source: object) -> bool:
    value = cfg.get(name, default)
    if not isinstance(value, bool):
        raise UnsupportedSAEError(
            f"{source}: {name} must be true or false, got {value!r}"
        )
    return value
