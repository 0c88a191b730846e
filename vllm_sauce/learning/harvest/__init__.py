# SPDX-License-Identifier: Apache-2.0
"""Activations of a model, taken while vLLM serves it."""
