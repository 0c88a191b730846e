# SPDX-License-Identifier: Apache-2.0
"""A subcommand in a process of its own, which is given its dataclass on stdin.

What a stage held on a GPU is free when its process has ended.
"""

import pickle
import sys

from vllm_sauce.cli.app import run_request
from vllm_sauce.scale import orphans

if __name__ == "__main__":
    orphans.install()
    sys.exit(run_request(*pickle.load(sys.stdin.buffer)))
