# SPDX-License-Identifier: Apache-2.0
"""The page about a bundle: what its latents fire on and what its edits do."""
