# SPDX-License-Identifier: Apache-2.0
"""Which latents stand for a concept."""
