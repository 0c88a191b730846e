# SPDX-License-Identifier: Apache-2.0
"""The folder a server loads: read, write, verify, fingerprint."""

from vllm_sauce.bundle.bundle import Bundle
from vllm_sauce.bundle.fingerprint import fingerprint_model, weights_sha256
from vllm_sauce.bundle.reading import read_concepts
from vllm_sauce.bundle.schema import ModelFingerprint
from vllm_sauce.bundle.writing import check_replaceable

__all__ = [
    "Bundle",
    "ModelFingerprint",
    "check_replaceable",
    "fingerprint_model",
    "read_concepts",
    "weights_sha256",
]
