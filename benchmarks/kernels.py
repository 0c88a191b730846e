# SPDX-License-Identifier: Apache-2.0
"""What the edit costs: one table a question.

``python benchmarks/kernels.py [--device cpu|cuda] [--questions a b c d e f] [--quick]
[--seconds S] [--minutes M] [--threads N] [--json FILE]``

a  time and GB/s over tokens, latents, d_model and masks
b  speed-up over the paper's way: encode all, edit, decode all, add the error
c  exact TopK against torch.topk
d  one program a token, a simple Triton kernel, against ours (needs a GPU)
e  question a for 1 to 64 latents a mask: supervised rows
f  2,048 tokens that share one mask or 16, against the rate of products

Tables are Markdown on standard output, progress on standard error; the last line is
everything as JSON. No result is timed before it is checked.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Not this folder, where kernels.py would stand for Hugging Face's package.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from benchmarks.kernel_suite.main import main

    main(sys.argv[1:], __doc__)
