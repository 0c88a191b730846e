# SPDX-License-Identifier: Apache-2.0
"""How well a concept is forgotten, and what that costs elsewhere."""
