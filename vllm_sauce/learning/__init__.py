# SPDX-License-Identifier: Apache-2.0
"""From a model and examples to a bundle."""
