# SPDX-License-Identifier: Apache-2.0
"""Plant bugs in a copy of the code, one at a time; do the tests catch each?

``python scripts/plant_bugs.py kernels|served [--table FILE]`` prints what caught each
bug and exits with 1 if one survived: ``kernels`` are those of the op, ``served`` those
of everything that must not be served wrong. For each file only some tests run: what a
part of the tests catches, all of them catch.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import track

sys.path.insert(0, str(Path(__file__).parent))

from planted_served import SERVED  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
OP = Path("kernels/vllm_sauce_kernels/masked_edit")
COPIED = ("kernels", "tests", "vllm_sauce", "scripts")
HANGS_S = 1200
"""The tests of a bug take a minute or two."""
LINKED = ("examples", "pyproject.toml", "docs", "README.md", "benchmarks")
TESTS_OF = {
    "native.cpp": "native and not build",
    "native.py": "build",
    "eager.py": "gathered or grouped",
    "dispatch.py": "opcheck or compile",
    "kernel_tiles.py": "triton or planned",
    "kernel_parts.py": "triton or planned",
    "kernel_rank.py": "(triton or planned) and (topk or equal) or at_once",
    "plan.py": "plan",
    "kernel.py": "triton or planned",
}
"""File -> pytest's ``-k``."""


@dataclass(frozen=True)
class Bug:
    """A change of one place in one file."""

    file: str
    right: str
    wrong: str
    what: str


HEAD = """# Planted bugs: {group}

Each line is one change of the code, made alone in a copy of the tree, and the test that
failed first. A bug that no test catches ends the command with 1.

    python scripts/plant_bugs.py {group} --table {table}

"""

BUGS = (
    Bug("native.cpp", "if (!(pre > call.gate[at]))", "if (!(pre >= call.gate[at]))", "the gate lets ties through"),
    Bug("native.cpp", "if (!(pre > call.gate[at]))", "if (pre <= call.gate[at])", "NaN fires"),
    Bug("native.cpp", "if (call.residual.data != nullptr)", "if (false)", "the residual is left out"),
    Bug("native.cpp", "if (slot < 0 || call.lens[slot] == 0) continue;", "if (slot < 0) continue;", "a mask without latents is counted"),
    Bug("native.cpp", "const int32_t count = std::min(kBlock, num_latents - start);", "const int32_t count = kBlock;", "entries beyond mask_len are read"),
    Bug("native.cpp", "(raw + 0x7FFF + odd)", "raw", "bfloat16 is cut off, not rounded"),
    Bug("native.cpp", "value != value ? 0x7FC0 : rounded", "rounded", "the bits of a NaN round to another number"),
    Bug("native.cpp", "out * (call.scale", "(call.scale", "the normalised change is not scaled back"),
    Bug("native.cpp", "outside |= static_cast<uint32_t>(latents[j]) >= num_rows;", "", "row numbers are not looked at"),
    Bug("native.cpp", "for (; j < num_fired; ++j)", "for (; j < num_fired - 1; ++j)", "the last latent does nothing"),
    Bug("native.cpp", "if (args[12].toInt() != 0) return false;", "", "TopK is done without ranks"),
    Bug("native.py", "return hashlib.sha256(body).digest() == digest", "return True", "half a library is loaded"),
    Bug("native.py", '        SOURCE.read_text(),\n', "", "a new loop runs as the old one"),
    Bug("eager.py", "fires = live & (hidden_pre > gate)", "fires = hidden_pre > gate", "garbage beyond mask_len fires"),
    Bug("eager.py", "torch.where(live, latents, latents[:, :1])", "latents.roll(1, 0)", "a token gets its neighbour's rows"),
    Bug("eager.py", "slot, order = tokens.slot.sort(stable=True)", "slot, order = tokens.slot.sort().values, torch.arange(len(tokens.slot))", "groups hold other masks' tokens"),
    Bug("eager.py", "centred.std(1, keepdim=True)", "centred.std(1, keepdim=True, correction=0)", "layer norm with the biased deviation"),
    Bug("eager.py", "hidden_states.index_copy_(0, part,", "hidden_states.index_add_(0, part,", "the edited row is added to the old one"),
    Bug("eager.py", "copied = last - first > len(index)", "copied = last - first > len(index) + 1", "the token between two of a mask's is edited for the second"),
    Bug("eager.py", "if not fires.any():\n                continue", "if not fires.any():\n                break", "parts behind a silent one do nothing"),
    Bug("eager.py", "before < op.topk", "before <= op.topk", "k + 1 latents rank"),
    Bug("eager.py", "lower = index < row[:, None]", "lower = index > row[:, None]", "ties rank from the end"),
    Bug("eager.py", "row[at] - start", "row[at]", "ties are wrong from the second tile on"),
    Bug("dispatch.py", '"(Tensor(a!) hidden_states', '"(Tensor hidden_states', "the schema hides the mutation"),
    Bug("kernel_tiles.py", "for start in range(BLOCK_LATENTS, num_latents, BLOCK_LATENTS):", "for start in range(0, 0):", "blocks behind a silent one do nothing"),
    Bug("kernel_tiles.py", "inside & (hidden_pre > gate[None, :])", "inside & (hidden_pre >= gate[None, :])", "Triton: the gate lets ties through"),
    Bug("kernel_tiles.py", "live = latent < encoded.num_latents", "live = (latent < encoded.max_latents) & (encoded.slot >= 0)", "Triton: entries beyond mask_len are read"),
    Bug("kernel_tiles.py", "tl.minimum(first_d + per_split, stream.d_model)", "stream.d_model", "Triton: splits of d_model overlap"),
    Bug("kernel_tiles.py", "for split in range(0, encoded.num_splits):", "for split in range(0, 1):", "Triton: the first split's sum is taken for the whole"),
    Bug("kernel_tiles.py", "if split == 0:", "if split >= 0:", "Triton: the bias is added once a split"),
    Bug("kernel_tiles.py", "(tl.load(encoded.ranks_ptr + at, mask=inside, other=0) < TOPK)", "(tl.load(encoded.ranks_ptr + at, mask=inside, other=0) <= TOPK)", "Triton: k + 1 latents rank"),
    Bug("kernel_tiles.py", "count.to(tl.int64))", "count.to(tl.int64) + 1)", "Triton: tokens are counted twice"),
    Bug("kernel_parts.py", "axis=0) > 0\n    row", "axis=0) > 1\n    row", "Triton: a latent that fires for one token does nothing"),
    Bug("kernel_tiles.py", "tl.minimum(first_d + per_part, d_model)", "d_model", "Triton: parts of d_model overlap"),
    Bug("kernel_tiles.py", "range(latent.shape[0], encoded.num_latents, latent.shape[0])", "range(0, 0)", "Triton: latents beyond the first block do nothing"),
    Bug("kernel_parts.py", "order = plan_ptr + 4 + tl.load(entry + 1)", "order = plan_ptr + 4", "Triton: the first tile's tokens stand for those of all"),
    Bug("kernel_parts.py", "out = tl.sqrt(square / (d_model - 1))", "out = tl.sqrt(square / d_model)", "Triton: layer norm with the biased deviation"),
    Bug("kernel_parts.py", "total = tl.dot(lower, b, total)", "total = total", "Triton: activations are rounded to bfloat16"),
    Bug("kernel_parts.py", "total = tl.dot(a - upper, b, total, input_precision=\"tf32\")", "total = total", "Triton: activations are rounded to tf32"),
    Bug("kernel_rank.py", "if count_firing(masks, longest, BLOCK_LATENTS) == 0:", "if longest == 0:", "Triton: the dictionary is passed where nothing fires"),
    Bug("kernel_rank.py", "row[None, :] < mine", "row[None, :] > mine", "Triton: ties rank from the end"),
    Bug("kernel_rank.py", "(row[None, :] != mine) & inside[None, :]", "(row[None, :] != mine)", "Triton: rows beyond the dictionary rank"),
    Bug("kernel_rank.py", "last = tl.minimum(first + ROWS_PER_PROGRAM, num_rows)", "last = tl.minimum(first + ROWS_PER_PROGRAM - 1, num_rows)", "Triton: a row between two programs is left out"),
    Bug("plan.py", "np.minimum(counts[group] - offset, most)", "most", "a slot's last tile holds the next slot's tokens"),
    Bug("plan.py", "= len(group), blocks", "= tiles_of[0], blocks", "only one mask of a step is planned"),
    Bug("plan.py", "lens[slots[starts]].max()", "lens[slots[starts]].min()", "long masks are cut off"),
    Bug("plan.py", "SMALL_TILE if edited[-1] < FEW_TOKENS else LARGE_TILE", "LARGE_TILE", "a tile holds more tokens than a program of few"),
    Bug("kernel.py", "if topk:\n        return 1", "if topk:\n        pass", "Triton: ranks compare parts of sums"),
    Bug("kernel.py", "SMALL if num_tokens <= FEW_TOKENS or not planned else LARGE", "SMALL", "Triton: a large tile's last tokens are left out"),
)  # fmt: skip


def workspace(folder: Path) -> None:
    """Copy what is changed and tested, link the rest."""
    for name in COPIED:
        skipped = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=skipped)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)


def caught_by(folder: Path, tests: Sequence[str], cache: Path) -> str | None:
    """Return the first of some tests that fails in a workspace, None if all pass.

    ``cache`` keeps what the kernels build: each of their states is built once.
    """
    own = os.pathsep.join(str(folder / part) for part in ("", "kernels", "examples"))
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "pytest", "-q", "-x", *tests]
            + ["-p", "no:cacheprovider", "--no-header", "--tb=no"],
            cwd=folder,
            env={**os.environ, "VLLM_SAUCE_CACHE": str(cache), "PYTHONPATH": own},
            capture_output=True,
            text=True,
            timeout=HANGS_S,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {HANGS_S} s"
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"signal {-done.returncode}, the end of the run"
    # The name of a test may hold blanks; what was wrong would follow " - ".
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"pytest did not run:\n{done.stdout}\n{done.stderr}")
    return found[1].removeprefix("tests/")


def plant(
    file: Path, right: str, wrong: str, tests: Sequence[str], cache: Path
) -> str | None:
    """Return the test that catches a bug, None if none does."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workspace(folder)
        source = (folder / file).read_text()
        if right not in source:
            raise RuntimeError(f"{file} has no {right!r}; bring the bugs up to date")
        (folder / file).write_text(source.replace(right, wrong))
        return caught_by(folder, tests, cache)


def planned(group: str) -> list[tuple[Path, Bug, list[str]]]:
    """Return a group's bugs, each with its file and the tests to run."""
    if group == "kernels":
        return [
            (OP / bug.file, bug, ["tests/kernels", "-k", TESTS_OF[bug.file]])
            for bug in BUGS
        ]
    return [
        (Path("vllm_sauce") / file, Bug(file, right, wrong, what), shlex.split(tests))
        for file, right, wrong, what, tests in SERVED
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("group", choices=("kernels", "served"))
    parser.add_argument("--table", type=Path, default=None)
    parser.add_argument("--only", default="", help="part of a bug's file or name")
    arguments = parser.parse_args()
    bugs = [
        (file, bug, tests)
        for file, bug, tests in planned(arguments.group)
        if arguments.only in bug.file + bug.what
    ]
    lines = ["| file | bug | caught first by |", "|---|---|---|"]
    survived = 0
    with tempfile.TemporaryDirectory() as temporary:
        cache, clean = Path(temporary) / "cache", Path(temporary) / "clean"
        clean.mkdir()
        workspace(clean)
        for tests in {tuple(tests): None for _, _, tests in bugs}:
            if (failed := caught_by(clean, tests, cache)) is not None:
                sys.exit(f"the tests fail without a bug: {failed}")
        for file, bug, tests in track(bugs, "bugs"):
            test = plant(file, bug.right, bug.wrong, tests, cache)
            survived += test is None
            name = "**nothing**" if test is None else f"`{test}`".replace("|", "\\|")
            lines.append(f"| `{bug.file}` | {bug.what} | {name} |")
            print(lines[-1], flush=True)
    if arguments.table is not None:
        head = HEAD.format(group=arguments.group, table=arguments.table)
        arguments.table.write_text(head + "\n".join(lines) + "\n")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
