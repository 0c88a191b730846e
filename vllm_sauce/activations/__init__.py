# SPDX-License-Identifier: Apache-2.0
"""Activations on disk: a harvest's shards, their writer, store and reader."""
