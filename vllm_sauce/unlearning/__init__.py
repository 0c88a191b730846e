# SPDX-License-Identifier: Apache-2.0
"""Request to mask to slots to tensors; knows nothing of vLLM."""
