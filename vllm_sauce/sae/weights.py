# SPDX-License-Identifier: Apache-2.0
"""The parameters of one SAE and its exact maths in float32."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vllm_sauce.errors import UnsupportedSAEError
from vllm_sauce.sae.normalization import check_normalization, normalize

ARCHITECTURES = ("jumprelu", "standard", "topk")
"""Those that can be served exactly. Latents of "topk" depend on each other: serving one
needs the whole encoder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How one of an SAE's last latents was fitted, with labels, for a concept."""

    concept: str
    """What it reads: 0 where the concept is not, 1 on the mean of where it is."""

    kind: str
    """What it was told from, and leads to when all of it is taken away. "others":
    samples with the concept from those without it; "absence": the same, and leads to
    those without any of its domain. "words": the tokens of its words from tokens of
    samples without it; "saying": the tokens after which the model wrote one of them,
    from the same. "before" is of older versions: a word's tokens and the one before.
    "difference", "leace", "random": one side of a simple edit that others are compared
    with."""

    shrinkage: float
    """Share of the covariance's diagonal alone that its inverse was taken with."""

    num_samples: tuple[int, int]
    """With the concept, and those it was told from; of words, tokens."""

    d_prime: float
    """How far apart the two are on samples it was not fitted on, in deviations, by the
    discriminant that its read began as."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SAEWeights:
    """A sparse autoencoder's parameters, in any float dtype."""

    W_enc: Tensor
    """Encoder, [d_model, d_sae]."""

    W_dec: Tensor
    """Decoder, [d_sae, d_model]."""

    b_enc: Tensor
    """Encoder bias, [d_sae]."""

    b_dec: Tensor
    """Decoder bias, [d_model]."""

    threshold: Tensor | None = None
    """JumpReLU threshold, [d_sae]; None for other kinds."""

    architecture: str = "standard"
    """ "standard" (ReLU), "jumprelu" or "topk"."""

    k: int | None = None
    """Latents that a token keeps; "topk" only."""

    normalize_activations: str = "none"
    """What is done to each token's input first: "none", "layer_norm" or
    "constant_norm_rescale"."""

    apply_b_dec_to_input: bool = True
    """Whether ``b_dec`` is subtracted from the input before encoding."""

    rows: tuple[Row, ...] = ()
    """What the last latents are, if they were fitted with labels: see ``rows``."""

    def __post_init__(self) -> None:
        check_architecture(self.architecture)
        check_normalization(self.normalize_activations)
        if self.W_enc.ndim != 2:
            raise UnsupportedSAEError(
                f"W_enc must be [d_model, d_sae], got {tuple(self.W_enc.shape)}"
            )
        if (self.architecture == "jumprelu") != (self.threshold is not None):
            raise UnsupportedSAEError(
                'a "jumprelu" SAE needs a threshold, no other kind has one'
            )
        if (self.architecture == "topk") != (self.k is not None and self.k > 0):
            raise UnsupportedSAEError(
                f'a "topk" SAE needs k >= 1, no other kind has one; got k={self.k} '
                f"for {self.architecture!r}"
            )
        if len(self.rows) > self.d_sae:
            raise UnsupportedSAEError(
                f"{len(self.rows)} rows are among {self.d_sae} latents"
            )
        shapes = {
            "W_dec": (self.d_sae, self.d_model),
            "b_enc": (self.d_sae,),
            "b_dec": (self.d_model,),
            "threshold": (self.d_sae,),
        }
        for name, tensor in self.tensors().items():
            want = shapes.get(name, tuple(self.W_enc.shape))
            if tuple(tensor.shape) != want or not tensor.is_floating_point():
                raise UnsupportedSAEError(
                    f"{name} must be floating point {want}, "
                    f"got {tensor.dtype} {tuple(tensor.shape)}"
                )

    @property
    def d_model(self) -> int:
        """Width of the activation."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by name, as a checkpoint holds them."""
        names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
        found = {name: getattr(self, name) for name in names}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def to(self, device: torch.device | str) -> SAEWeights:
        """Return the SAE with its parameters on a device."""
        moved: dict[str, Any] = {n: t.to(device) for n, t in self.tensors().items()}
        return replace(self, **moved)

    def hidden_pre(self, x: Tensor) -> Tensor:
        """Return the encoder's pre-activations.

        Shapes: x [..., d_model] -> [..., d_sae] float32
        """
        sae_in, _, _ = normalize(x.float(), self.normalize_activations)
        if self.apply_b_dec_to_input:
            sae_in = sae_in - self.b_dec.float()
        return product(sae_in, self.W_enc) + self.b_enc.float()

    def encode(self, x: Tensor) -> Tensor:
        """Return the latents' activations.

        Shapes: x [..., d_model] -> [..., d_sae] float32
        """
        hidden_pre = self.hidden_pre(x)
        if self.k is not None:
            # Gao et al. 2024, arXiv:2406.04093
            kept = torch.topk(hidden_pre, min(self.k, self.d_sae), dim=-1)
            zeros = torch.zeros_like(hidden_pre)
            return zeros.scatter(-1, kept.indices, kept.values.relu())
        acts = torch.relu(hidden_pre)
        if self.threshold is None:
            return acts
        # Rajamanoharan et al. 2024, arXiv:2407.14435; BatchTopK at inference, too
        return acts * (hidden_pre > self.threshold.float())

    def decode(self, latent_acts: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the activation that latents stand for.

        ``x`` is what they were encoded from; its normalisation, if any, is undone.

        Shapes: latent_acts [..., d_sae], x [..., d_model] -> [..., d_model] float32
        Raises: UnsupportedSAEError if the input was normalised and x is not given
        """
        decoded = product(latent_acts.float(), self.W_dec) + self.b_dec.float()
        if self.normalize_activations == "none":
            return decoded
        if x is None:
            raise UnsupportedSAEError(
                f"this SAE's input is normalised ({self.normalize_activations}); "
                "give decode the x that was encoded"
            )
        _, scale, mean = normalize(x.float(), self.normalize_activations)
        return decoded * scale + mean

    def finite(self) -> bool:
        """Return whether every parameter is a finite number."""
        return all(map(all_finite, self.tensors().values()))


_BLOCK = 2**24
"""Numbers of a matrix that are widened, or looked at, at a time."""


def all_finite(tensor: Tensor) -> bool:
    """Return whether every number is finite, without a copy of them all."""
    parts = tensor.reshape(-1).split(_BLOCK)
    return all(bool(part.isfinite().all()) for part in parts)


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """Return ``x @ matrix`` in float32; a narrow matrix is widened block by block.

    131,072 latents of 4,096 numbers are 1 GiB in bfloat16, and would be 2 GiB more.

    Shapes: x [..., n], matrix [n, m] -> [..., m] float32
    """
    if matrix.dtype == torch.float32:
        return x @ matrix
    columns = max(1, _BLOCK // max(1, len(matrix)))
    parts = matrix.split(columns, dim=1)
    return torch.cat([x @ part.float() for part in parts], dim=-1)


def check_architecture(name: str) -> str:
    """Return a kind of SAE that can be served. Raises: UnsupportedSAEError"""
    if name not in ARCHITECTURES:
        raise UnsupportedSAEError(
            f"SAE architecture must be one of {', '.join(ARCHITECTURES)}, "
            f"got {name!r}; "
            "gated, BatchTopK and Matryoshka SAEs can be saved as jumprelu"
        )
    return name
