# SPDX-License-Identifier: Apache-2.0
"""Every kernel that is launched compiles for every GPU, and fits it; without a GPU.

The launches themselves are recorded, so what is compiled is what would run.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kernels.inputs import make_args, normals
from tests.kernels.plans import plan_of
from tests.places import ROOT
from vllm_sauce.errors import ConfigError
from vllm_sauce.files import write_whole
from vllm_sauce.plugin.worker.op_check import SIZES
from vllm_sauce_kernels.masked_edit.reference import Arguments

TARGETS = [("cuda", 80, 32), ("cuda", 90, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)]
SHARED = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10, "gfx942": 64 << 10}
"""Shared memory that a program may use, in bytes (CUDA C Programming Guide, CDNA 3)."""
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
OPTIONS = ("num_warps", "num_stages", "maxnreg")
SPILLS = ROOT / ".cache" / "spills"
"""Bytes spilled by what has been assembled in this checkout, by a digest of it."""


@dataclass
class Recorder:
    """Stands for a kernel and keeps what it is launched with."""

    kernel: Any
    launches: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = field(
        default_factory=list
    )

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *args, **kwargs: self.launches.append((self.kernel, args, kwargs))


def record(module: Any, monkeypatch: pytest.MonkeyPatch, target: Any) -> list[Any]:
    """Make a module's launches for a target be recorded, and return where."""
    hip = target[0] == "hip"
    monkeypatch.setattr(torch.version, "hip", "6" if hip else None)
    nvidia = (0, 0) if hip else divmod(target[1], 10)
    # Baselines ask no such thing.
    monkeypatch.setattr(module, "capability", lambda device: nvidia, raising=False)
    launches: list[Any] = []
    for name, value in vars(module).items():
        if name.endswith("_kernel"):
            monkeypatch.setattr(module, name, Recorder(value, launches))
    return launches


def build(launch: tuple[Any, tuple[Any, ...], dict[str, Any]], target: Any) -> Any:
    """Compile a launch as Triton would, specialised for its numbers and pointers."""
    triton = importlib.import_module("triton")
    GPUTarget = importlib.import_module("triton.backends.compiler").GPUTarget
    kernel, args, kwargs = launch
    given = dict(zip(kernel.arg_names, args, strict=False))
    given |= {k: v for k, v in kwargs.items() if k not in OPTIONS}
    assert set(given) == set(kernel.arg_names)
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        value = given[name]
        if name.isupper() or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
            continue
        is_tensor = isinstance(value, torch.Tensor)
        signature[name] = TYPES[value.dtype] if is_tensor else "i32"
        if is_tensor or value % 16 == 0:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    options = {k: v for k, v in kwargs.items() if k in OPTIONS}
    return triton.compile(source, target=GPUTarget(*target), options=options)


def spills(binary: Any, target: tuple[str, Any, int], folder: Path) -> int:
    """Return the registers that a binary spills, as its compiler says."""
    if target[0] == "hip":
        # Scalar registers spill into vector registers' lanes, not into memory.
        found = re.findall(r"vgpr_spill_count: +(\d+)", binary.asm["amdgcn"])
        assert len(found) == 1
        return int(found[0])
    find = importlib.import_module("triton.backends.nvidia.compiler").get_ptxas
    ptxas = find(target[1])
    made_by = f"{ptxas.path} {ptxas.version} sm_{target[1]}\n"
    made = hashlib.sha256((made_by + binary.asm["ptx"]).encode()).hexdigest()
    # Triton keeps the binary so; this is what its assembler says as it makes one.
    known = SPILLS / made
    if not known.exists():
        spilled = _assembled(ptxas.path, binary, target, folder)
        SPILLS.mkdir(parents=True, exist_ok=True)
        write_whole(known, str(spilled).encode(), ConfigError)
    return int(known.read_text())


def _assembled(ptxas: str, binary: Any, target: Any, folder: Path) -> int:
    ptx = folder / "kernel.ptx"
    ptx.write_text(binary.asm["ptx"])
    suffix = "a" if target[1] >= 90 else ""
    done = subprocess.run(
        [ptxas, "-v", f"--gpu-name=sm_{target[1]}{suffix}", str(ptx)]
        + ["-o", str(folder / "kernel.cubin")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"(\d+) bytes spill stores", done.stderr)
    assert len(found) == 1, done.stderr
    return int(found[0])


def launches_of(
    module: Any,
    launches: list[Any],
    stream: torch.dtype,
    pool: torch.dtype,
    num_tokens: int,
    **kind: int,
) -> list[Any]:
    """Return what a batch of a production shape launches."""
    launches.clear()
    args = make_args((num_tokens, 4096, 64, 48, 4), normals())
    for name in ("hidden_states", "residual"):
        args[name] = args[name].to(stream)
    for name in ("W_enc_rows", "W_dec_rows"):
        args[name] = args[name].to(pool)
    args |= kind
    module.launch(Arguments(**args, plan=plan_of(args)))
    module.launch(Arguments(**args))
    return list(launches)


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FP8 = torch.float8_e4m3fn
KINDS: list[dict[str, int]] = [{}, {"normalize": 1}, {"topk": 8}]


@pytest.mark.parametrize("num_tokens", [16, 2048])
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_every_launch_fits_every_gpu(
    compiled: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    target: tuple[str, Any, int],
    dtype: torch.dtype,
    kind: dict[str, int],
    num_tokens: int,
) -> None:
    """Decoding and prefill: a binary, its shared memory, and no spills."""
    launches = record(compiled, monkeypatch, target)
    seen = launches_of(compiled, launches, dtype, dtype, num_tokens, **kind)
    # Two launches with a plan and two without; the ranks' one.
    assert len(seen) == (6 if "topk" in kind else 4)
    for launch in seen:
        binary = build(launch, target)
        name = launch[0].fn.__name__
        assert len(binary.asm["cubin" if target[0] == "cuda" else "hsaco"]) > 1000
        assert binary.metadata.shared <= SHARED[target[1]], name
        assert spills(binary, target, tmp_path) == 0, name


@pytest.mark.parametrize("num_tokens", [16, 2048])
@pytest.mark.parametrize(("stream", "pool"), [(FP32, FP32), (BF16, FP8)])
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_other_dtypes_compile(
    compiled: Any,
    monkeypatch: pytest.MonkeyPatch,
    target: tuple[str, Any, int],
    stream: torch.dtype,
    pool: torch.dtype,
    num_tokens: int,
) -> None:
    """float32 and fp8 pools; fp8 where the GPU has e4m3fn."""
    if pool == FP8 and target[1] in (80, "gfx942"):
        pytest.skip("this GPU has no e4m3fn; SiteTable refuses it there")
    launches = record(compiled, monkeypatch, target)
    for launch in launches_of(compiled, launches, stream, pool, num_tokens)[:2]:
        binary = build(launch, target)
        assert binary.metadata.shared <= SHARED[target[1]], launch[0].fn.__name__


def key_of(launch: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> tuple[Any, ...]:
    """Return what Triton compiles a launch for, by its documented rules."""
    kernel, args, kwargs = launch
    found: list[Any] = [kernel.fn.__name__]
    for name, value in [*zip(kernel.arg_names, args, strict=False), *kwargs.items()]:
        if isinstance(value, torch.Tensor):
            found.append(value.dtype)
        elif name.isupper() or name in OPTIONS:
            found.append(value)
        elif name not in kernel.do_not_specialize:
            found.append((value == 1, value % 16 == 0))
    return tuple(found)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("planned", [True, False])
def test_no_batch_compiles_what_the_warm_up_has_not(
    compiled: Any, monkeypatch: pytest.MonkeyPatch, kind: dict[str, int], planned: bool
) -> None:
    """Requests wait for what is compiled later; SIZES are compiled before serving."""
    launches = record(compiled, monkeypatch, ("cuda", 90, 32))
    most = 8192
    args = make_args((most, 16, 8, 33, 4), normals()) | kind
    if planned:
        args["plan"] = plan_of(args)

    def keys(num_tokens: int) -> set[Any]:
        launches.clear()
        rows = {n: args[n][:num_tokens] for n in ("hidden_states", "residual")}
        compiled.launch(Arguments(**args | rows))
        return {key_of(launch) for launch in launches}

    warm = {key for size in SIZES for key in keys(size)}
    assert len(warm) >= (4 if planned else 2)
    assert {key for n in range(1, most + 1) for key in keys(n)} <= warm
