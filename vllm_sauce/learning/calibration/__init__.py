# SPDX-License-Identifier: Apache-2.0
"""Each concept's setting, found by asking the served model."""
