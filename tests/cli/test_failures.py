# SPDX-License-Identifier: Apache-2.0
"""What a user can cause ends in one line and an exit status, never in a traceback."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.sauce import sauce
from tests.places import ROOT
from vllm_sauce.cli import failures
from vllm_sauce.cli.app import COMMANDS
from vllm_sauce.errors import ConfigError

TINY = ROOT / "examples" / "tiny"
BUNDLE, MODEL, CONCEPTS = TINY / "latents", TINY / "model", TINY / "concepts.yaml"

# What each command can be run with; where a path is read, it stands alone.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "batch": (CONCEPTS, "out.parquet", "--model", "MODEL", "--bundle", BUNDLE),
    "calibrate": (
        *("--model", MODEL, "--sae", f"vision={BUNDLE}", "--selection", "SEL.json"),
        *("--concepts", CONCEPTS, "--out", "out"),
    ),
    "demo": ("--json", "none/demo.json"),
    "diff": (BUNDLE, "OTHER"),
    "eval": (BUNDLE, "--model", MODEL, "--concepts", "CONCEPTS.yaml", "--out", "out"),
    "fit": (
        *("--site", "vision", "--harvest", "HARVEST", "--concepts", CONCEPTS),
        *("--out", "out"),
    ),
    "harvest": (
        *("--model", MODEL, "--out", "out", "--site", "vision"),
        *("--concepts", "CONCEPTS.yaml"),
    ),
    "import": ("SAE", "--model", MODEL, "--site", "vision", "--out", "out"),
    "inspect": ("BUNDLE", "--model", MODEL, "--concepts", CONCEPTS),
    "learn": (
        *("--model", MODEL, "--site", "vision", "--concepts", "CONCEPTS.yaml"),
        *("--out", "out", "--sae", f"vision={BUNDLE}"),
    ),
    "pull": ("not-a-name",),
    "push": ("BUNDLE", "org/name"),
    "select": (
        *("--sae", BUNDLE, "--site", "vision", "--harvest", "HARVEST"),
        *("--concepts", CONCEPTS),
    ),
    "stamp": ("BUNDLE", MODEL),
    "train": ("HARVEST", "--site", "vision", "--out", "out"),
}


def test_every_command_is_tried() -> None:
    assert set(ARGUMENTS) == set(COMMANDS)


def run(*arguments: object) -> tuple[int, str]:
    """Return the exit status and the error of a command that let nothing through."""
    done = sauce(*arguments)
    return done.exit_code, done.stderr


def check_one_line(name: str, status: int, error: str) -> None:
    # A bar that has shown something stays where there is no terminal.
    lines = [line for line in error.splitlines() if not line.startswith("starting ")]
    assert status == 2, error
    assert len(lines) == 1 and lines[0].startswith(f"sauce {name}: "), error
    assert "Traceback" not in error and len(lines[0]) > len(f"sauce {name}: ") + 10


def missing(path: Path) -> None:
    pass


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(255, -1, -1)) * 8)


def a_list(path: Path) -> None:
    path.write_text("[1, 2, 3]\n")


def text(path: Path) -> None:
    path.write_text(json.dumps({"dog": "a text"}))


def folder(path: Path) -> None:
    path.mkdir()
    (path / "bundle.json").write_bytes(b"\xff{")
    (path / "cfg.json").write_text("[]")
    (path / "sae_weights.safetensors").write_bytes(b"\xff" * 64)
    (path / "run.json").write_text("[]")
    (path / "harvest.json").write_bytes(b"\xff")


@pytest.mark.parametrize("damage", [missing, empty, noise, a_list, text, folder])
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_an_input_that_is_not_what_it_should_be(
    name: str, damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In capitals, among the arguments, stands what is damaged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for argument in ARGUMENTS[name]:
        if str(argument).split(".")[0].isupper():
            damage(tmp_path / str(argument))
    check_one_line(name, *run(name, *ARGUMENTS[name]))


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_what_is_not_installed_is_named_with_what_brings_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else: not after hours of work."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(failures, "find_spec", lambda module: None)
    needs = COMMANDS[name][1]
    if not needs:
        pytest.skip("needs no extra")
    status, error = run(name, *ARGUMENTS[name])
    check_one_line(name, status, error)
    assert f"{needs[0]} is not installed: pip install 'vllm-sauce[" in error


@pytest.mark.parametrize(
    ("name", "blocked"),
    [
        ("batch", "pyarrow"),
        ("batch", "ray"),
        ("import", "torch"),
        ("push", "torch"),
        ("select", "safetensors"),
        ("train", "sae_lens"),
    ],
)
def test_without_a_module_there_is_no_traceback(
    name: str, blocked: str, tmp_path: Path
) -> None:
    """In a process that really lacks it, as every import of it finds."""
    code = (
        f"import sys; sys.modules[{blocked!r}] = None; "
        f"from vllm_sauce.cli import app; app()"
    )
    more = ("--actors", "2") if (name, blocked) == ("batch", "ray") else ()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hello"}\n')
    arguments = [str(MODEL) if x == "MODEL" else str(x) for x in ARGUMENTS[name]]
    if name == "batch":
        arguments[0] = "rows.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", code, name, *arguments, *more],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    check_one_line(name, done.returncode, done.stderr)
    extra = failures.EXTRAS.get(blocked, "install vllm-sauce again")
    assert blocked in done.stderr.casefold() and extra.split(",")[0] in done.stderr


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Any:
    """Returns status, output and errors of a command that raises."""

    def run(error: BaseException, **options: bool) -> tuple[int, str, str]:
        def command() -> None:
            raise error

        status = failures.told("x", command, **options)
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ConfigError("a and b"), "a and b"),
        (OSError(errno.ENOSPC, "No space left", "/x/y"), "/x/y: No space left"),
        (PermissionError(errno.EACCES, "Denied", "/x"), "/x: Denied"),
        (OSError("no errno at all"), "OSError: no errno at all"),
        (MemoryError(), "out of memory"),
        (ModuleNotFoundError("x", name="ray.data"), "'vllm-sauce[scale]'"),
        (ModuleNotFoundError("x", name="jinja2"), "install vllm-sauce again"),
        (json.JSONDecodeError("Expecting\nvalue", "", 0), "json raised JSONDecodeErr"),
    ],
)
def test_each_kind_of_error_in_one_line(
    failing: Any, error: Exception, said: str
) -> None:
    status, _, shown = failing(error)
    assert (status, said in shown) == (2, True), shown
    assert len(shown.splitlines()) == 1


def test_an_interruption_is_quiet(failing: Any) -> None:
    assert failing(KeyboardInterrupt()) == (130, "", "")


def test_an_exit_status_of_the_command_s_own_is_kept() -> None:
    assert failures.told("x", lambda: 1) == 1
    assert failures.told("x", lambda: None) == 0


def test_our_own_mistakes_keep_their_traceback(
    failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "_OURS", ("tests",))
    with pytest.raises(KeyError):
        failing(KeyError("ours"))
    with pytest.raises(ModuleNotFoundError):
        failing(ModuleNotFoundError("x", name="tests.gone"))


def test_a_reader_that_went_away_is_no_mistake() -> None:
    code = (
        "import sys; from vllm_sauce.cli.failures import told\n"
        "def command():\n"
        "    while True: print('x' * 1000)\n"
        "sys.exit(told('x', command))"
    )
    command = f'{sys.executable} -c "{code}" | head -1; echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[1:] == ["1"] and done.stderr == ""


def test_tracebacks_are_shown_on_demand(failing: Any) -> None:
    with pytest.raises(ConfigError, match="a and b"):
        failing(ConfigError("a and b"), show_tracebacks=True)
    with pytest.raises(ConfigError, match="not-a-name"):
        run("--traceback", "pull", "not-a-name")


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    import vllm_sauce

    done = sauce("--version")
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert done.exit_code == 0
    assert lines.keys() == {"vllm-sauce", "vllm", "torch"}
    assert lines["vllm-sauce"] == vllm_sauce.__version__
    assert lines["torch"][0].isdigit() and lines["vllm"][0].isdigit()


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["learn", "--help"]])
def test_what_is_only_told_imports_nothing_large(words: list[str]) -> None:
    code = (
        "import sys; from vllm_sauce.cli import app\n"
        f"try: app({words})\n"
        "except SystemExit as ended: assert not ended.code\n"
        "large = {'numpy', 'pydantic', 'ray', 'torch', 'transformers', 'vllm'}\n"
        "sys.exit(sorted(large & set(sys.modules)) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], 'Unknown command "trian". Did you mean "train"?'),
        (["train", "h", "--site", "vision", "--ot", "o"], "--out"),
        (["train", "h", "--site", "vision", "--out", "o", "--lrr", "1"], "--lr?"),
        (["train", "h", "--site", "vision", "--out", "o", "--k", "x"], "into float"),
        (["train", "h", "--site", "vision", "--out"], "requires an argument"),
        (["pull", "a", "b"], "Unused Tokens: ['b']"),
    ],
)
def test_a_mistyped_line_is_an_error_of_one_line(words: list[str], said: str) -> None:
    status, error = run(*words)
    assert status == 2 and said in error, error
    assert len(error.splitlines()) == 1 and error.startswith("sauce")


def test_a_subcommand_that_is_mistyped_lists_what_there_is() -> None:
    assert all(name in sauce("--help").stdout for name in COMMANDS)
    assert sauce().stdout == sauce("--help").stdout


def test_what_is_only_shown_costs_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    with failures.only_shown("the picture"):
        raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
    with failures.only_shown("the picture"):
        raise KeyError("unseen")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all("picture is not drawn" in line for line in lines)


@pytest.mark.parametrize("place", ["none/out.json", ".", "file/out.json"])
@pytest.mark.parametrize(
    ("name", "option"),
    [("select", "--out"), ("inspect", "--out"), ("demo", "--json"), ("demo", "--html")],
)
def test_a_place_that_cannot_be_written_is_refused_first(
    name: str,
    option: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    arguments = ARGUMENTS[name] if name != "demo" else ()
    status, error = run(name, *arguments, option, place)
    check_one_line(name, status, error)
    assert "is a folder" in error or "is no folder" in error
