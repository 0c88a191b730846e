# SPDX-License-Identifier: Apache-2.0
"""SAEs that others trained, checked against the model."""
