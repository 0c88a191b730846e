# SPDX-License-Identifier: Apache-2.0
"""dictionary_learning's ``ae.pt``: seven classes, among them sae-for-vlm's for CLIP.

Which class it is, the tensors' names say; only AutoEncoderTopK and BatchTopKSAE are
saved alike, and ``config.json`` (trainer.dict_class) or the user must say. Gated and
JumpReLU activations are multiplied by their decoder's norm, as the classes do it.
BatchTopK and Matryoshka at inference are JumpReLU with one threshold.

Source: github.com/saprmarks/dictionary_learning, dictionary_learning/dictionary.py,
trainers/{top_k,batch_top_k,matryoshka_batch_top_k}.py; hub: mateuszpach/sae-for-vlm
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from torch import Tensor

from vllm_sauce.errors import ConfigError, UnsupportedSAEError
from vllm_sauce.sae.config_keys import check_keys, names
from vllm_sauce.sae.folding import fold_decoder_norm, fold_gated
from vllm_sauce.sae.formats.checkpoint import PICKLES, Checkpoint
from vllm_sauce.sae.formats.conversion import (
    ForeignSAE,
    LoadOptions,
    assemble,
    check_config,
    pick,
    whole_k,
)
from vllm_sauce.sae.weights import SAEWeights

LAYOUT = "ae.pt with encoder.weight or W_enc [d_model, d_sae], named as its class does"

_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
_BIASED = {**_LINEAR, "b_enc": "encoder.bias"}
_PLAIN = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
_TOPK = {**_BIASED, "b_dec": "b_dec"}
_GATE = {"r_mag", "gate_bias", "mag_bias"}

TRAINER_INERT: Final = names(
    # The tensors have their own sizes; what was trained on was scaled back when saved.
    "activation_dim device dict_size group_fractions group_sizes group_weights layer "
    "lm_name norm_factor submodule_name trainer_class wandb_name "
    # How it was trained.
    "activation_queue_length adaptive_sparsity_penalty anneal_start auxk_alpha "
    "bandwidth decay_start l1_penalty lr n_sparsity_updates p_end p_start "
    "resample_steps seed sparsity_function sparsity_loss_queue_length "
    "sparsity_penalty sparsity_queue_length sparsity_warmup_steps steps "
    "steps_before_annealing target_l0 threshold_beta threshold_start_step top_k_aux "
    "warmup_steps weights_temperature"
)
"""Keys under ``trainer`` that change nothing of what the SAE computes."""

BUFFER_INERT: Final = names(
    "ctx_len d_submodule device io layer n_ctxs out_batch_size refresh_batch_size"
)
"""Keys under ``buffer`` that change nothing of it."""


def matches(checkpoint: Checkpoint) -> bool:
    """Return whether one of dictionary_learning's classes saved this."""
    return checkpoint.path.suffix in PICKLES and bool(_candidates(checkpoint))


def load(checkpoint: Checkpoint, options: LoadOptions) -> ForeignSAE:
    """Return the SAE, by the class that saved it.

    Raises: ConfigError, UnsupportedSAEError
    """
    _check_config(checkpoint)
    name = _dict_class(checkpoint, options)
    weights, folded = _CLASSES[name](checkpoint, options)
    return ForeignSAE(
        format="dictionary_learning", weights=weights, folded=(name, *folded)
    )


def _check_config(checkpoint: Checkpoint) -> None:
    check_config(checkpoint, {}, used=("trainer", "buffer"))
    for part, used, inert in (
        ("trainer", ("dict_class", "k"), TRAINER_INERT),
        ("buffer", (), BUFFER_INERT),
    ):
        said = checkpoint.config.get(part) or {}
        source = f"{checkpoint.config_path}: {part}"
        if not isinstance(said, dict):
            raise UnsupportedSAEError(f"{source} must be an object, got {said!r}")
        check_keys(said, source, used=used, inert=inert)
        if said.get("io") == "in_and_out":
            raise UnsupportedSAEError(
                f"{source} took what goes into a module and what comes out: this is a "
                "transcoder, not an SAE"
            )


def _candidates(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return the classes whose parameters have exactly these names."""
    names = checkpoint.names()
    return tuple(
        dict_class
        for dict_class, (needed, optional) in _NAMES.items()
        if needed <= names <= needed | optional
    )


def _dict_class(checkpoint: Checkpoint, options: LoadOptions) -> str:
    found = _candidates(checkpoint)
    if not found:
        raise UnsupportedSAEError(
            f"no class of dictionary_learning has these names. {checkpoint.describe()}"
        )
    trainer = checkpoint.config.get("trainer")
    said = options.dict_class or (
        trainer.get("dict_class") if isinstance(trainer, dict) else None
    )
    if options.dict_class is not None and options.dict_class not in _CLASSES:
        raise ConfigError(
            f"--dict-class is one of {', '.join(_CLASSES)}, got {options.dict_class!r}"
        )
    said = _MISSPELT.get(str(said), said)
    if said in found:
        return str(said)
    if said is None and len(found) == 1:
        return found[0]
    raise UnsupportedSAEError(
        f"{checkpoint.path} has the parameters of {' or '.join(found)}, "
        f"{'and no config.json says which' if said is None else f'not of {said}'}; "
        "say it with --dict-class"
    )


_Loaded = tuple[SAEWeights, tuple[str, ...]]


def _standard(checkpoint: Checkpoint, options: LoadOptions) -> _Loaded:
    tensors = pick(checkpoint, **_BIASED, b_dec="bias")
    return assemble(tensors, stored=True, architecture="standard"), ()


def _standard_new(checkpoint: Checkpoint, options: LoadOptions) -> _Loaded:
    tensors = pick(checkpoint, **_BIASED, b_dec="decoder.bias")
    sae = assemble(
        tensors, stored=True, architecture="standard", apply_b_dec_to_input=False
    )
    return sae, ()


def _gated(checkpoint: Checkpoint, options: LoadOptions) -> _Loaded:
    tensors = pick(checkpoint, **_LINEAR, b_enc="mag_bias", b_dec="decoder_bias")
    # b_enc stands in: only now are the matrices known to be the right way round.
    sae = assemble(tensors, stored=True, architecture="standard")
    gate = pick(checkpoint, r_mag="r_mag", b_gate="gate_bias", b_mag="mag_bias")
    W_enc, b_enc, threshold = fold_gated(sae.W_enc, **gate)
    sae = replace(
        sae, W_enc=W_enc, b_enc=b_enc, threshold=threshold, architecture="jumprelu"
    )
    return _unit_rows(sae), ("gate into a threshold", "decoder norms into the encoder")


def _jumprelu(checkpoint: Checkpoint, options: LoadOptions) -> _Loaded:
    sae = assemble(
        pick(checkpoint, **_PLAIN),
        stored=False,
        architecture="jumprelu",
        threshold=checkpoint.tensors["threshold"],
        apply_b_dec_to_input=False,
    )
    return _unit_rows(sae), ("decoder norms into the encoder",)


def _topk(checkpoint: Checkpoint, options: LoadOptions) -> _Loaded:
    k = checkpoint.tensors.get("k", checkpoint.extras.get("k"))
    trainer = checkpoint.config.get("trainer")
    if k is None and isinstance(trainer, dict):
        k = trainer.get("k")
    sae = assemble(
        pick(checkpoint, **_TOPK),
        stored=True,
        architecture="topk",
        k=options.k or whole_k(k, str(checkpoint.path)),
    )
    return sae, ()


def _batch_topk(checkpoint: Checkpoint, options: LoadOptions) -> _Loaded:
    return _with_threshold(checkpoint, _TOPK, stored=True)


def _matryoshka(checkpoint: Checkpoint, options: LoadOptions) -> _Loaded:
    return _with_threshold(checkpoint, _PLAIN, stored=False)


def _with_threshold(
    checkpoint: Checkpoint, names: Mapping[str, str], *, stored: bool
) -> _Loaded:
    threshold = checkpoint.tensors["threshold"]
    if threshold.numel() != 1 or float(threshold) < 0:
        # -1 until training has estimated it: as it stands, every latent is active.
        raise UnsupportedSAEError(
            f"{checkpoint.path}: threshold must be one number from 0, got "
            f"{threshold.flatten()[:4].tolist()}; training has not estimated it"
        )
    sae = assemble(
        pick(checkpoint, **names),
        stored=stored,
        architecture="jumprelu",
        threshold=threshold,
    )
    return sae, (f"one threshold, {float(threshold):g}, for every latent",)


def _unit_rows(sae: SAEWeights) -> SAEWeights:
    norm: Tensor = sae.W_dec.float().norm(dim=1)
    W_enc, b_enc, W_dec = fold_decoder_norm(sae.W_enc, sae.b_enc, sae.W_dec)
    threshold = None if sae.threshold is None else sae.threshold.float() * norm
    return replace(sae, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, threshold=threshold)


_Loader = Callable[[Checkpoint, LoadOptions], _Loaded]
_CLASSES: Final[dict[str, _Loader]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _standard_new,
    "GatedAutoEncoder": _gated,
    "JumpReluAutoEncoder": _jumprelu,
    "AutoEncoderTopK": _topk,
    "BatchTopKSAE": _batch_topk,
    "MatryoshkaBatchTopKSAE": _matryoshka,
}
_MISSPELT: Final = {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}
"""Names that classes had before."""

_PLAIN_NAMES = frozenset(_PLAIN)
_TOPK_NAMES = frozenset(_TOPK.values())
_MATRYOSHKA = _PLAIN_NAMES | {"threshold", "group_sizes"}
_NAMES: Final[dict[str, tuple[frozenset[str], frozenset[str]]]] = {
    "AutoEncoder": (frozenset(_BIASED.values()) | {"bias"}, frozenset()),
    "AutoEncoderNew": (frozenset(_BIASED.values()) | {"decoder.bias"}, frozenset()),
    "GatedAutoEncoder": (
        frozenset(_LINEAR.values()) | {"decoder_bias"} | _GATE,
        frozenset(),
    ),
    "JumpReluAutoEncoder": (_PLAIN_NAMES | {"threshold"}, frozenset()),
    "AutoEncoderTopK": (_TOPK_NAMES, frozenset({"k", "threshold"})),
    "BatchTopKSAE": (_TOPK_NAMES | {"threshold"}, frozenset({"k"})),
    "MatryoshkaBatchTopKSAE": (_MATRYOSHKA, frozenset({"k"})),
}
"""Names a class's state dict has, and those it may have."""
