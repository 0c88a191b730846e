# SPDX-License-Identifier: Apache-2.0
"""``sauce eval``: what a bundle does as served, beside what needs no bundle."""
