# SPDX-License-Identifier: Apache-2.0
"""sauce-smol: SmolLM2-135M behind sauce-tiny's tower, a chat model with eyes."""
