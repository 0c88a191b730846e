# SPDX-License-Identifier: Apache-2.0
"""Scripts a person runs; what several share."""
