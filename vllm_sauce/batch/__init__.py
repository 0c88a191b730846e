# SPDX-License-Identifier: Apache-2.0
"""Answer a file of prompts, each with its own mask, on one machine or a cluster."""
