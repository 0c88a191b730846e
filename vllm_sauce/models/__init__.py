# SPDX-License-Identifier: Apache-2.0
"""A model as transformers runs it."""
