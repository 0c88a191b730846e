# SPDX-License-Identifier: Apache-2.0
"""The plugin's entry point. Imports only the standard library: see ``register``."""

import functools


@functools.cache
def register() -> None:
    """Install the hooks; vLLM calls this in every process it starts.

    vLLM skips a plugin whose *import* fails but stops for one that raises here, so
    everything that can fail is imported inside the function.

    Raises: UnsupportedVLLMError when this vLLM has no seam we know.
    """
    from vllm_sauce import client
    from vllm_sauce.plugin import hooks

    hooks.install()
    client.plugin_registered = True
