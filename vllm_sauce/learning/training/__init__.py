# SPDX-License-Identifier: Apache-2.0
"""Harvest a model's activations and train SAEs on them."""
