# SPDX-License-Identifier: Apache-2.0
"""Make a served vision-language model forget concepts, per request, in stock vLLM.

vLLM imports this package in every process and skips a plugin whose import fails, so
everything here is standard library only.
"""

from vllm_sauce.client import forget, forget_body
from vllm_sauce.errors import (
    ActivationsError,
    ActorDiedError,
    BatchError,
    BundleCorruptError,
    BundleError,
    BundleMismatchError,
    BundleNotFoundError,
    CanaryError,
    ConfigError,
    InvalidRequestError,
    InvalidStrengthError,
    LearnError,
    PictureError,
    ReconstructionError,
    RequestError,
    SauceError,
    TooManyConceptsError,
    TrainingError,
    UnknownConceptError,
    UnsupportedFeatureError,
    UnsupportedSAEError,
    UnsupportedVLLMError,
)

__version__ = "0.1.0"

__all__ = [
    "ActivationsError",
    "ActorDiedError",
    "BatchError",
    "BundleCorruptError",
    "BundleError",
    "BundleMismatchError",
    "BundleNotFoundError",
    "CanaryError",
    "ConfigError",
    "InvalidRequestError",
    "InvalidStrengthError",
    "LearnError",
    "PictureError",
    "ReconstructionError",
    "RequestError",
    "SauceError",
    "TooManyConceptsError",
    "TrainingError",
    "UnknownConceptError",
    "UnsupportedFeatureError",
    "UnsupportedSAEError",
    "UnsupportedVLLMError",
    "__version__",
    "forget",
    "forget_body",
]
