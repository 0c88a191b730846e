# SPDX-License-Identifier: Apache-2.0
"""Work on many processes: Ray, on this machine or a cluster."""
