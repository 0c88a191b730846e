# SPDX-License-Identifier: Apache-2.0
"""The API process: what it takes from clients, and that its engine runs the same."""
