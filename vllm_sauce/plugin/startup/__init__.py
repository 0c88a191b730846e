# SPDX-License-Identifier: Apache-2.0
"""What an engine starts with: flags, settings, features that would bypass the edit."""
