# SPDX-License-Identifier: Apache-2.0
"""Long random runs of the engine and of a server: ``scripts/soak``."""
