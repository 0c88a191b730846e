# SPDX-License-Identifier: Apache-2.0
"""``sauce fit``: a row for each concept, from a harvest and its labels."""
