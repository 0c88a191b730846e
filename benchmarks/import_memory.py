# SPDX-License-Identifier: Apache-2.0
"""Peak memory of ``sauce import`` on files of public layouts at full width.

    python benchmarks/import_memory.py FOLDER [NAME...]

Writes each layout with random numbers (1 to 5 GiB) into FOLDER, and a random model of
its family and width, two layers. Imports the one for the other, which runs the model;
prints what each stage held at most, and removes it. Anonymous memory is what is taken
for good; the mapped file is the system's to give back.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def _rows(d_sae: int, d_model: int, dtype: torch.dtype) -> torch.Tensor:
    """Return random unit rows, drawn in parts."""
    matrix = torch.empty(d_sae, d_model, dtype=dtype)
    rng = torch.Generator().manual_seed(0)
    for part in matrix.split(4096):
        drawn = torch.randn(part.shape, generator=rng)
        part.copy_(torch.nn.functional.normalize(drawn))
    return matrix


def sparsify(folder: Path) -> tuple[Path, int]:
    """lmms-lab/llama3-llava-next-8b-hf-sae-131k."""
    d_sae, d_model = 131_072, 4096
    rows = _rows(d_sae, d_model, torch.bfloat16)
    tensors = {
        "encoder.weight": rows,
        "encoder.bias": torch.zeros(d_sae, dtype=rows.dtype),
        "W_dec": rows.clone(),
        "b_dec": torch.zeros(d_model, dtype=rows.dtype),
    }
    save_file(tensors, folder / "sae.safetensors")
    config = {"d_in": d_model, "k": 256, "num_latents": d_sae, "expansion_factor": 32}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder, d_model


def qwen_scope(folder: Path) -> tuple[Path, int]:
    """Qwen-Scope of Qwen3 8B, 65,536 latents."""
    d_sae, d_model = 65_536, 4096
    rows = _rows(d_sae, d_model, torch.bfloat16)
    tensors = {
        "W_enc": rows,
        "W_dec": rows.T.contiguous(),
        "b_enc": torch.zeros(d_sae, dtype=rows.dtype),
        "b_dec": torch.zeros(d_model, dtype=rows.dtype),
    }
    file = folder / "layer18.sae.pt"
    torch.save(tensors, file)
    (folder / "config.json").write_text('{"k": 50, "model_type": "topk_sae"}')
    return file, d_model


def gemma_scope(folder: Path) -> tuple[Path, int]:
    """Gemma Scope 2 of Gemma 3 4B, 262,144 latents, float32."""
    d_sae, d_model = 262_144, 2560
    rows = _rows(d_sae, d_model, torch.float32)
    tensors = {
        "w_enc": rows.T.contiguous(),
        "w_dec": rows,
        "b_enc": torch.zeros(d_sae),
        "b_dec": torch.zeros(d_model),
        "threshold": torch.full((d_sae,), 4.6),
    }
    save_file(tensors, folder / "params.safetensors")
    config = {"architecture": "jump_relu", "width": d_sae}
    (folder / "config.json").write_text(json.dumps(config))
    return folder, d_model


def sae_v(folder: Path) -> tuple[Path, int]:
    """PKU-Alignment/SAE-V of LLaVA-NeXT with Mistral: SAELens' files, version 3."""
    d_sae, d_model = 65_536, 4096
    rows = _rows(d_sae, d_model, torch.float32)
    tensors = {
        "W_enc": rows.T.contiguous(),
        "W_dec": rows,
        "b_enc": torch.zeros(d_sae),
        "b_dec": torch.zeros(d_model),
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {
        "architecture": "standard",
        "d_in": d_model,
        "d_sae": d_sae,
        "activation_fn_str": "relu",
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
        "hook_name": "blocks.16.hook_resid_post",
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder, d_model


LAYOUTS: dict[str, Callable[[Path], tuple[Path, int]]] = {
    "sparsify": sparsify,
    "sae_v": sae_v,
    "qwen_scope": qwen_scope,
    "gemma_scope": gemma_scope,
    "gemma_scope_text": gemma_scope,
}


def _model(folder: Path, name: str, d_model: int) -> Path:
    """Write a random model of the layout's family, with sauce-tiny's words."""
    import transformers

    words = Path(__file__).resolve().parents[1] / "examples" / "tiny" / "model"
    marks = {f"{one}_token": f"<{one}>" for one in ("image", "boi", "eoi")}
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        words, extra_special_tokens=marks
    )
    tokenizer.init_kwargs.pop("processor_class", None)
    tokenizer._set_processor_class(None)  # LLaVA's
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": d_model,
        "intermediate_size": 1024,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 128,
    }
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    clip = {"model_type": "clip_vision_model", "projection_dim": 32, **tower}
    image = tokenizer.convert_tokens_to_ids("<image>")

    def llava_next(family: str) -> Any:
        config = transformers.LlavaNextConfig(
            vision_config=clip,
            text_config={"model_type": family, **text},
            image_token_index=image,
        )
        return transformers.LlavaNextForConditionalGeneration(config)

    def gemma3() -> Any:
        config = transformers.Gemma3Config(
            vision_config={"model_type": "siglip_vision_model", **tower},
            text_config=text,
            mm_tokens_per_image=4,
        )
        return transformers.Gemma3ForConditionalGeneration(config)

    made: dict[str, Callable[[], Any]] = {
        "sparsify": lambda: llava_next("llama"),
        "sae_v": lambda: llava_next("mistral"),
        "qwen_scope": lambda: transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(**text)
        ),
        "gemma_scope": gemma3,
        "gemma_scope_text": lambda: transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**text)
        ),
    }
    torch.manual_seed(0)
    made[name]().to(torch.bfloat16).save_pretrained(folder)
    reader: Any = tokenizer
    side = {"height": 28, "width": 28}
    if name in ("sparsify", "sae_v"):
        images = transformers.LlavaNextImageProcessor(size=side, crop_size=side)
        reader = transformers.LlavaNextProcessor(images, tokenizer, patch_size=14)
    elif name == "gemma_scope":
        images = transformers.Gemma3ImageProcessor(size=side)
        reader = transformers.Gemma3Processor(images, tokenizer, image_seq_length=4)
    reader.save_pretrained(folder)
    return folder


def measure(folder: Path, name: str) -> None:
    """Write a layout, import it in a process of its own, remove it."""
    place = folder / name
    place.mkdir(parents=True)
    try:
        source, d_model = LAYOUTS[name](place)
        model = _model(folder / f"{name}.model", name, d_model)
        told = [str(one) for one in (source, model, folder / "bundle")]
        subprocess.run([sys.executable, __file__, "--one", name, *told], check=True)
    finally:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _import(name: str, source: str, model: str, out: str) -> None:
    from vllm_sauce.learning.importing.import_sae import import_sae
    from vllm_sauce.learning.importing.settings import ImportRequest

    stages, peak = ["starting"], {}

    def watch() -> None:
        while True:
            with open("/proc/self/status", encoding="ascii") as file:
                lines = dict(line.split(":", 1) for line in file)
            held = (int(lines[key].split()[0]) for key in ("RssAnon", "RssFile"))
            before = peak.get(stages[-1], (0, 0))
            peak[stages[-1]] = tuple(map(max, before, held))
            time.sleep(0.01)

    threading.Thread(target=watch, daemon=True).start()
    begun = time.monotonic()
    request = ImportRequest(
        source=source, model=model, site="decoder.1", compare=False, out=Path(out)
    )
    # Random numbers explain nothing, and no floor that users can give lets that pass.
    object.__setattr__(request, "min_explained_variance", float("-inf"))
    import_sae(request, stages.append)
    file = max(Path(source).parent.rglob("*"), key=lambda one: one.stat().st_size)
    size = file.stat().st_size / 2**30
    print(f"{name}: {size:.2f} GiB, {time.monotonic() - begun:.0f} s")
    for stage, (held, mapped) in peak.items():
        print(f"  {stage}: {held / 2**20:.2f} GiB, mapped {mapped / 2**20:.2f} GiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        _import(*sys.argv[2:])
    else:
        for asked in sys.argv[2:] or LAYOUTS:
            measure(Path(sys.argv[1]), asked)
