# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct, and prompts about five concepts that it is to forget."""
