# SPDX-License-Identifier: Apache-2.0
"""sauce-tiny: a LLaVA small enough to train, serve and unlearn on two CPU cores."""
