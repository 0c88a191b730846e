# SPDX-License-Identifier: Apache-2.0
"""The API process: what it takes from clients, and that it runs as its engine does."""
