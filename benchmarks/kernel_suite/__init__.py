# SPDX-License-Identifier: Apache-2.0
"""The questions of ``benchmarks/kernels.py``, one file each, and what they share."""
