# SPDX-License-Identifier: Apache-2.0
"""Models that vLLM does not serve (any more) and the plugin brings itself."""
