# SPDX-License-Identifier: Apache-2.0
"""The kernels' benchmark: its checks reject wrong results, and its command answers."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.kernel_suite import (
    edit_speed,
    paper,
    per_token,
    per_token_speed,
    targets,
    timing,
    topk,
    verify,
)
from benchmarks.kernel_suite.cases import Case, op_args, random_rows, several, work_of
from benchmarks.kernel_suite.machine import Machine, check_forms
from benchmarks.kernel_suite.report import Table
from tests.kernels.conftest import compiled, interpreted
from tests.kernels.inputs import expected, make_args, small_integers
from tests.kernels.test_ahead_of_time import SHARED, build, record, spills
from tests.places import ROOT
from vllm_sauce_kernels.masked_edit import masked_edit, masked_edit_eager, native

__all__ = ["compiled", "interpreted"]

BASELINE = "benchmarks.kernel_suite.per_token"
CPU = torch.device("cpu")


def machine(*, triton: bool) -> Machine:
    """A CPU that times a call for no longer than it must."""
    found = Machine(CPU, torch.float32, 1e-6, True, lambda line: None, triton)
    found.copy_bytes_per_s, found.flops_per_s = 1e9, 1e10
    return found


@pytest.fixture
def baseline(monkeypatch: pytest.MonkeyPatch) -> Callable[[], ModuleType]:
    """Imports the baseline anew: decorating a kernel decides how it is run."""

    def load() -> ModuleType:
        package, _, name = BASELINE.rpartition(".")
        # Importing sets both; what they were is put back after the test.
        monkeypatch.setattr(sys.modules[package], name, per_token)
        monkeypatch.delitem(sys.modules, BASELINE)
        return importlib.import_module(BASELINE)

    return load


def numbers(values: Any) -> list[float]:
    """Return a column that holds nothing but numbers."""
    return [float(value) for value in values]


def quick(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command on the CPU for a moment."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    command = [sys.executable, "benchmarks/kernels.py", "--device", "cpu", "--quick"]
    return subprocess.run(
        [*command, "--seconds", "0.001", "--threads", "1", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_command_answers_every_question(tmp_path: Path) -> None:
    done = quick("--json", str(tmp_path / "found.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "found.json").read_text())
    tables = {
        name: [Table(**table) for table in every]
        for name, every in found["questions"].items()
    }
    assert sorted(tables) == ["a", "b", "c", "d", "e", "f"]
    assert tables["d"][0].note.startswith("Needs a GPU")
    assert not tables["d"][0].rows
    for name, ratio in (("b", "paper / ours"), ("c", "torch.topk / ours")):
        ratios = tables[name][0].column(ratio)
        assert ratios
        assert min(numbers(ratios)) > 0
    for name in ("time us", "GB/s", "% of copy", "MB"):
        for question in ("a", "e"):
            assert min(numbers(tables[question][0].column(name))) > 0
    assert set(tables["e"][0].column("latents")) == {1, 8}
    assert found["copy_GB_per_s"] > 0
    assert str(tmp_path) not in done.stdout
    for table in (tables["a"][0], tables["b"][0]):
        assert f"## {table.title}" in done.stdout


def test_a_gpu_is_asked_for_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    arguments = ["benchmarks/kernels.py", "--device", "cuda"]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "PyTorch sees no GPU" in done.stderr


def slightly_wrong(**args: Any) -> None:
    """Leave the last latent of each mask out."""
    masked_edit_eager(**{**args, "mask_len": args["mask_len"] - 1})


def idle(**args: Any) -> None:
    """Edit nothing but the count."""
    masked_edit_eager(**{**args, "mask_scale": torch.zeros_like(args["mask_scale"])})


def uncounted(**args: Any) -> None:
    """Edit, and count nothing."""
    masked_edit_eager(**{**args, "edited_tokens": args["edited_tokens"].clone()})


@pytest.mark.parametrize("wrong", [slightly_wrong, idle, uncounted])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_variant_is_rejected(
    wrong: Callable[..., None], dtype: torch.dtype
) -> None:
    case = Case(12, 7, 72, 3, 24)
    rows = random_rows(case.pool, case.d_model, CPU, dtype)
    forms = {"right": masked_edit, "eager": masked_edit_eager}
    check_forms(machine(triton=False), forms, case, rows, reference=True)
    forms["wrong"] = wrong
    with pytest.raises(verify.WrongResult, match="^wrong "):
        check_forms(machine(triton=False), forms, case, rows, reference=True)


def test_nothing_is_shown_by_an_edit_that_changes_nothing_or_by_nan() -> None:
    zeros, ones = torch.zeros(2), torch.ones(2)
    with pytest.raises(verify.WrongResult, match="changes nothing"):
        verify.verify("x", zeros, zeros, zeros, 1.0)
    with pytest.raises(verify.WrongResult, match="off by nan"):
        verify.verify("x", zeros / 0, ones, zeros, 1.0)
    assert verify.verify("x", ones, ones, zeros, 0.0) == 0


def test_the_papers_way_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault in it ends the run before anything is timed."""
    paper.check(machine(triton=False))
    right = paper.clamped
    monkeypatch.setattr(paper, "clamped", lambda *args: right(*args) + 0.1)
    with pytest.raises(verify.WrongResult, match="full"):
        paper.check(machine(triton=False))


def test_torch_topk_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    topk.check(machine(triton=False))
    right = paper.edit_of

    def one_latent_off(args: Any) -> Any:
        edit = right(args)
        return edit._replace(latents=(edit.latents + 1) % 24)

    monkeypatch.setattr(topk, "edit_of", one_latent_off)
    with pytest.raises(verify.WrongResult, match="torch.topk"):
        topk.check(machine(triton=False))


def test_the_limit_of_the_loop_is_native_cpps() -> None:
    """The benchmark says which form an edit took; it must know."""
    for name, known in (
        ("kMaxElements", edit_speed.NATIVE_ELEMENTS),
        ("kMaxElementsTimesCores", edit_speed.NATIVE_ELEMENTS_TIMES_CORES),
    ):
        (shift,) = re.findall(
            rf"{name} = int64_t\{{1\}} << (\d+);", native.SOURCE.read_text()
        )
        assert 1 << int(shift) == known
    (tokens,) = re.findall(r"kTokensPerMask = (\d+);", native.SOURCE.read_text())
    assert int(tokens) == edit_speed.NATIVE_TOKENS_PER_MASK


def test_work_is_counted_once() -> None:
    """Two masks that share rows; by hand, in bytes of float32."""
    case = Case(4, 2, 8, 2, pool=3)
    args = op_args(case, random_rows(3, 8, CPU, torch.float32))
    args["mask_latents"] = torch.tensor([[0, 1], [1, 2]], dtype=torch.int32)
    args["b_enc"] = torch.tensor([100.0, -100.0, 100.0])
    work = work_of(case, args)
    assert work.rows_bytes == (3 + 2) * 8 * 4
    assert work.stream_bytes == 3 * 4 * 8 * 4
    # Each token: two products with encoder rows, one with a decoder row.
    assert work.flops == 4 * (2 + 1) * 2 * 8
    silent = work_of(Case(4, 2, 8, 2, pool=3, fire="none"), args)
    assert silent.rows_bytes == 3 * 8 * 4
    assert silent.stream_bytes == 2 * 4 * 8 * 4
    assert silent.flops == 4 * 2 * 2 * 8


def test_half_of_the_latents_fire_again_and_again() -> None:
    """Timing repeats in place: what fires must stay as it was."""
    case = Case(16, 32, 64, 4, pool=128)
    args = several(case, random_rows(128, 64, CPU, torch.float32), 1, 1)[0]
    before = work_of(case, args)
    for _ in range(200):
        masked_edit(**args)
    after = work_of(case, args)
    assert abs(after.flops - before.flops) <= 0.01 * before.flops
    assert 1.4 < before.flops / (2 * 64 * 16 * 32) < 1.6


def test_sets_of_arguments_exceed_the_cache() -> None:
    case = Case(1, 4, 16, 1, pool=64)
    rows = random_rows(64, 16, CPU, torch.float32)
    sets = several(case, rows, cold_bytes=20_000, most=100)
    assert len(sets) == 32
    assert len({args["W_enc_rows"].data_ptr() for args in sets}) == 3
    assert len(several(case, rows, cold_bytes=20_000, most=7)) == 7


def test_variants_alternate() -> None:
    seen: list[str] = []
    found = timing.compare(
        {"x": lambda: seen.append("x"), "y": lambda: seen.append("y")}, CPU, 1e-9
    )
    assert set(found) == {"x", "y"}
    changes = sum(a != b for a, b in zip(seen, seen[1:], strict=False))
    assert changes >= 2 * timing.MIN_ROUNDS - 1
    assert 0 < found["x"].low <= found["x"].median <= found["x"].high


def test_the_baseline_is_exact(
    interpreted: object, baseline: Callable[[], ModuleType]
) -> None:
    """Small integers, idle tokens, garbage behind masks, with and without residual."""
    module = baseline()
    for residual in (True, False):
        args = make_args((9, 70, 20, 9, 4), small_integers(), residual=residual)
        want = expected(args)
        module.per_token(*args.values())
        assert torch.equal(args["hidden_states"], want["hidden_states"])
        assert torch.equal(args["edited_tokens"], want["edited_tokens"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("d_model", [1024, 4096, 8192])
def test_the_baseline_fits_a_gpu(
    compiled: Any,
    baseline: Callable[[], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    d_model: int,
    dtype: torch.dtype,
) -> None:
    """Compiled for sm_90 as it is launched; a baseline that spills is not honest."""
    target = ("cuda", 90, 32)
    module = baseline()
    launches = record(module, monkeypatch, target)
    case = Case(4, 3, d_model, 2, 8)
    args = op_args(case, random_rows(8, d_model, CPU, dtype))
    module.per_token(*args.values())
    module.launch_empty(args["b_enc"], 132)
    assert len(launches) == 2
    for launch in launches:
        binary = build(launch, target)
        assert len(binary.asm["cubin"]) > 1000
        assert binary.metadata.shared <= SHARED[90]
        assert spills(binary, target, tmp_path) == 0


def test_a_gpus_tables(
    interpreted: object,
    baseline: Callable[[], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that a GPU runs but its clock, by Triton's interpreter, on tiny cells."""
    baseline()
    monkeypatch.setattr(timing, "MIN_ROUNDS", 1)
    monkeypatch.setattr("benchmarks.kernel_suite.machine.CPU_COLD_BYTES", 1)
    for question in (edit_speed, per_token_speed):
        monkeypatch.setattr(question, "LARGE", Case(20, 5, 24, 2, 16))
    monkeypatch.setattr(edit_speed, "pool_for", lambda latents: 64)
    monkeypatch.setattr(edit_speed, "QUICK_GRID", ((2,), (4,), (16,), (2,)))
    monkeypatch.setattr(per_token_speed, "QUICK_GRID", ((2,), (4,), (2,)))
    monkeypatch.setattr(paper, "QUICK_GRID", ((128,), (2,), 16))
    monkeypatch.setattr(paper, "LATENTS", 4)
    monkeypatch.setattr(paper, "POOL", 64)
    monkeypatch.setattr(topk, "QUICK_GRID", ((128,), (2,), 16))
    monkeypatch.setattr(topk, "TOPK", 32)
    monkeypatch.setattr(topk, "POOL", 64)
    on_gpu = machine(triton=True)
    (found,) = edit_speed.run(on_gpu)
    assert len(found.rows) == 2
    assert min(numbers(found.column("time us"))) > 0
    for rows in (paper.run(on_gpu), topk.run(on_gpu), per_token_speed.run(on_gpu, 16)):
        assert len(rows[0].rows) == 2


def test_what_there_is_no_time_for_is_said() -> None:
    late = machine(triton=False)
    late.deadline = 0
    (table,) = edit_speed.run(late)
    assert not table.rows
    assert table.note.endswith("Left out, no time: 20 cells.")


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.kernel_suite.machine.free_bytes", lambda _: 0)
    monkeypatch.setattr(edit_speed, "QUICK_GRID", ((1,), (4,), (16,), (1,)))
    small = machine(triton=False)
    for question in (edit_speed, paper, topk):
        (table,) = question.run(small)
        assert not table.rows
        assert "too little memory" in table.note


def test_targets_are_named(
    interpreted: object,
    baseline: Callable[[], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The issue's numbers, from times that are made up here."""
    baseline()

    def compare(variants: Any, *rest: Any) -> Any:
        us = {"ours": 30.0, "empty": 2.0, "empties": 6.0}
        return {name: timing.Seconds(*[1e-6 * us[name]] * 3) for name in variants}

    monkeypatch.setattr("benchmarks.kernel_suite.machine.compare", compare)
    on_gpu = machine(triton=True)
    (table,) = targets.run(on_gpu, d_model=16)
    assert table.column("unit").count("us over empty") == 4
    assert table.column("time us") == pytest.approx([30.0] * 6)
    assert table.column("measured")[1:3] == pytest.approx([28.0] * 2)
    assert set(table.column("target")[1:3]) == {"<= 2"}
