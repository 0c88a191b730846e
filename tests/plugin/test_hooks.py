# SPDX-License-Identifier: Apache-2.0
"""vLLM runs the plugin in a process, and the process knows it."""

from __future__ import annotations

import vllm.plugins

from vllm_sauce import client


def test_loading_vllms_plugins_registers_ours() -> None:
    """``forget`` looks at both of these to tell whether it would be ignored."""
    vllm.plugins.load_general_plugins()
    assert vllm.plugins.plugins_loaded
    assert client.plugin_registered
