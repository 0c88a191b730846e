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
from dataclasses import dataclass, replace
from typing import Any, Final

from vllm_sauce.errors import ConfigError, UnsupportedSAEError
from vllm_sauce.sae.config_keys import check_keys, names
from vllm_sauce.sae.folding import fold_decoder_norm, fold_gated
from vllm_sauce.sae.formats.checkpoint import PICKLES, Checkpoint
from vllm_sauce.sae.formats.conversion import Loaded, LoadOptions, assemble, whole_k
from vllm_sauce.sae.weights import SAEWeights

LAYOUT = "ae.pt with encoder.weight or W_enc [d_model, d_sae], named as its class does"

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


def load(checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    """Return the SAE, by the class that saved it."""
    _check_config(checkpoint)
    name = _dict_class(checkpoint, options)
    weights, folded = _CLASSES[name].load(_CLASSES[name], checkpoint, options)
    return weights, (name, *folded)


def _check_config(checkpoint: Checkpoint) -> None:
    checkpoint.check_config({}, used=("trainer", "buffer"))
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
        name
        for name, kind in _CLASSES.items()
        if kind.needed <= names <= kind.needed | kind.optional
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Class:
    """How one of the classes saves its parameters."""

    load: Callable[[_Class, Checkpoint, LoadOptions], Loaded]
    names: Mapping[str, str]
    """Of the matrices and biases, by ours."""
    more: frozenset[str] = frozenset()
    """Other names that its state dict has."""
    optional: frozenset[str] = frozenset()
    """Those it may have."""
    stored: bool = True
    """Whether both matrices are transposed."""
    apply_b_dec_to_input: bool = True

    @property
    def needed(self) -> frozenset[str]:
        """All names that its state dict has."""
        return self.more | frozenset(self.names.values())

    def sae(self, checkpoint: Checkpoint, architecture: str, **more: Any) -> SAEWeights:
        """Return the SAE of its tensors."""
        return assemble(
            checkpoint.pick(**self.names),
            stored=self.stored,
            architecture=architecture,
            apply_b_dec_to_input=self.apply_b_dec_to_input,
            **more,
        )


def _standard(kind: _Class, checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    return kind.sae(checkpoint, "standard"), ()


def _gated(kind: _Class, checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    gate = checkpoint.pick(r_mag="r_mag", b_gate="gate_bias", b_mag="mag_bias")
    # mag_bias stands in for b_enc: only now are the matrices the right way round.
    sae = fold_gated(kind.sae(checkpoint, "standard"), **gate)
    return _unit_rows(sae), ("gate into a threshold", "decoder norms into the encoder")


def _jumprelu(kind: _Class, checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    threshold = checkpoint.tensors["threshold"]
    sae = kind.sae(checkpoint, "jumprelu", threshold=threshold)
    return _unit_rows(sae), ("decoder norms into the encoder",)


def _topk(kind: _Class, checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    k = checkpoint.tensors.get("k", checkpoint.extras.get("k"))
    trainer = checkpoint.config.get("trainer")
    if k is None and isinstance(trainer, dict):
        k = trainer.get("k")
    k = options.k or whole_k(k, str(checkpoint.path))
    return kind.sae(checkpoint, "topk", k=k), ()


def _batch_topk(kind: _Class, checkpoint: Checkpoint, options: LoadOptions) -> Loaded:
    threshold = checkpoint.tensors["threshold"]
    if threshold.numel() != 1 or float(threshold) < 0:
        # -1 until training has estimated it: as it stands, every latent is active.
        raise UnsupportedSAEError(
            f"{checkpoint.path}: threshold must be one number from 0, got "
            f"{threshold.flatten()[:4].tolist()}; training has not estimated it"
        )
    sae = kind.sae(checkpoint, "jumprelu", threshold=threshold)
    return sae, (f"one threshold, {float(threshold):g}, for every latent",)


def _unit_rows(sae: SAEWeights) -> SAEWeights:
    """Fold the norms that these classes multiply activations with once they are cut."""
    assert sae.threshold is not None
    threshold = sae.threshold.float() * sae.W_dec.float().norm(dim=1)
    return replace(fold_decoder_norm(sae), threshold=threshold)


_LINEAR = {"W_enc": "encoder.weight", "W_dec": "decoder.weight"}
_BIASED = {**_LINEAR, "b_enc": "encoder.bias"}
_TOPK = {**_BIASED, "b_dec": "b_dec"}
_PLAIN = {name: name for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
_CLASSES: Final = {
    "AutoEncoder": _Class(load=_standard, names={**_BIASED, "b_dec": "bias"}),
    "AutoEncoderNew": _Class(
        load=_standard,
        names={**_BIASED, "b_dec": "decoder.bias"},
        apply_b_dec_to_input=False,
    ),
    "GatedAutoEncoder": _Class(
        load=_gated,
        names={**_LINEAR, "b_enc": "mag_bias", "b_dec": "decoder_bias"},
        more=names("r_mag gate_bias"),
    ),
    "JumpReluAutoEncoder": _Class(
        load=_jumprelu,
        names=_PLAIN,
        more=names("threshold"),
        stored=False,
        apply_b_dec_to_input=False,
    ),
    "AutoEncoderTopK": _Class(load=_topk, names=_TOPK, optional=names("k threshold")),
    "BatchTopKSAE": _Class(
        load=_batch_topk, names=_TOPK, more=names("threshold"), optional=names("k")
    ),
    "MatryoshkaBatchTopKSAE": _Class(
        load=_batch_topk,
        names=_PLAIN,
        more=names("threshold group_sizes"),
        optional=names("k"),
        stored=False,
    ),
}
_MISSPELT: Final = {"MatroyshkaBatchTopKSAE": "MatryoshkaBatchTopKSAE"}
"""Names that classes had before."""
