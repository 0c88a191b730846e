# SPDX-License-Identifier: Apache-2.0
"""Kernels of vllm-sauce, one folder an op: definition, CPU form, Triton form.

Importing this package alone loads neither torch nor Triton.
"""
