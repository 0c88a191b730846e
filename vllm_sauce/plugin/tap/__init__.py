# SPDX-License-Identifier: Apache-2.0
"""Taking activations while vLLM serves."""
