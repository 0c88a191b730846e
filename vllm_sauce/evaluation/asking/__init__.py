# SPDX-License-Identifier: Apache-2.0
"""Asking a model: through vLLM, and through transformers."""
