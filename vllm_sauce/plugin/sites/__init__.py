# SPDX-License-Identifier: Apache-2.0
"""Where an edit or a tap sits in a model, and how it learns whose rows it sees."""
