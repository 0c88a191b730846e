# SPDX-License-Identifier: Apache-2.0
"""What we rely on in vLLM is there: in the source of each version, and at start."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from tests.places import ROOT
from vllm_sauce.errors import UnsupportedVLLMError
from vllm_sauce.plugin import compat, hooks, own_models
from vllm_sauce.plugin.compat import seam_check
from vllm_sauce.plugin.compat.seam_check import Found
from vllm_sauce.plugin.compat.seams import SEAMS, Seam

RECORDS = {
    file.stem: json.loads(file.read_text(encoding="utf-8"))
    for file in (Path(__file__).parent / "seams").glob("*.json")
}
BY_VERSION = sorted(RECORDS, key=Version)


def recorded(version: str, seam: Seam) -> Found | None:
    """Return what a version's source has under a seam's name."""
    found = RECORDS[version].get(seam.full_name)
    if found is None:
        return None
    return Found(**{key: tuple(found.get(key, ())) for key in Found.__slots__})


@pytest.mark.parametrize("version", BY_VERSION)
def test_each_version_has_what_we_rely_on(version: str) -> None:
    for seam in SEAMS:
        if seam.in_version(version):
            found = recorded(version, seam)
            assert found, f"{seam.full_name}: missing; scripts/record_seams.py if new"
            assert list(found.lacks(seam)) == [], seam.full_name


def test_what_is_supported_is_recorded() -> None:
    recorded_minors = {Version(version).release[:2] for version in RECORDS}
    supported = {
        (0, minor)
        for minor in range(100)
        if compat.SUPPORTED_VLLM.contains(f"0.{minor}.0")
    }
    assert supported, "an empty range would prove nothing"
    assert supported <= recorded_minors


@pytest.mark.parametrize("version", BY_VERSION)
def test_each_runner_splits_pictures_where_we_replace_it(version: str) -> None:
    """The name in each runner's module is the function of vllm.multimodal.utils."""
    for module in ("gpu_model_runner", "gpu.mm.encoder_runner"):
        name = f"vllm.v1.worker.{module}.group_and_batch_mm_kwargs"
        assert RECORDS[version][name] == {"from": ["vllm.multimodal.utils"]}


def test_the_records_are_true_of_the_vllm_that_runs() -> None:
    """Source and live objects give the same: neither reader makes things up."""
    version = Version(compat.vllm_version()).base_version
    if version not in RECORDS:
        pytest.skip(f"vLLM {version} is not recorded")
    compared = 0
    for seam in SEAMS:
        if seam.place in ("all", "http", "worker") and seam.in_version(version):
            wanted = recorded(version, seam)
            live = seam_check.live(seam)
            assert wanted and live, seam.full_name
            assert live.params == wanted.params, seam.full_name
            compared += bool(live.params)
    assert compared > 5


class _Base:
    field: int

    def __init__(self) -> None:
        self.kept = 1


class _Thing(_Base):
    def method(self, first: int, *, second: int = 0) -> list[int]:
        return [helper(first) for _ in range(second)]

    @classmethod
    def built(cls, args: int) -> int:
        return args


def helper(value: int) -> int:
    """Something that a seam calls."""
    return value


@pytest.fixture
def a_vllm(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that stands for one of vLLM's."""
    module = types.ModuleType("vllm_stand_in")
    # A class of its own: tests wrap its methods.
    module.Thing = type("Thing", (_Thing,), dict(vars(_Thing)))  # type: ignore[attr-defined]
    module.helper = helper  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def check(monkeypatch: pytest.MonkeyPatch, *seams: Seam) -> None:
    """Check rows of a table that has only these."""
    monkeypatch.setattr(seam_check, "SEAMS", seams)
    seam_check.check("here")


def a_seam(name: str, **wants: str) -> Seam:
    return Seam("here", "vllm_stand_in", name, **wants)


GOOD = (
    a_seam("helper", leads="value"),
    a_seam("Thing.method", leads="self first", takes="second", calls="helper"),
    a_seam("Thing.built", leads="cls args"),
    a_seam("Thing", has="field kept method"),
    Seam("elsewhere", "vllm_stand_in", "gone"),
    a_seam("gone", versions="<0.1"),
)


def test_what_is_there_passes_also_when_wrapped(
    a_vllm: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(monkeypatch, *GOOD)
    for owner, name in (
        (a_vllm, "helper"),
        (a_vllm.Thing, "method"),
        (a_vllm.Thing, "built"),
    ):
        compat.wrap(owner, name, lambda original, *a, **k: original(*a, **k))
    check(monkeypatch, *GOOD)


@pytest.mark.parametrize(
    ("seam", "complaint"),
    [
        (a_seam("gone"), "vllm_stand_in.gone is missing"),
        (a_seam("Thing.gone"), "vllm_stand_in.Thing.gone is missing"),
        (Seam("here", "vllm_gone", "helper"), "vllm_gone.helper is missing"),
        (
            a_seam("Thing.method", leads="self second"),
            "takes (self, first, second), not (self, second) first",
        ),
        (a_seam("Thing.method", takes="third"), "takes no third"),
        (a_seam("Thing.method", calls="another"), "calls no another"),
        (a_seam("Thing", has="field other"), "has no other"),
        (a_seam("gone", versions=">=0.26"), "vllm_stand_in.gone is missing"),
    ],
)
def test_what_has_changed_is_named(
    a_vllm: types.ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    seam: Seam,
    complaint: str,
) -> None:
    with pytest.raises(UnsupportedVLLMError) as refused:
        check(monkeypatch, seam)
    assert complaint in str(refused.value)


def test_a_missing_seam_stops_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = Seam("all", "vllm.v1.engine", "Gone")
    monkeypatch.setattr(seam_check, "SEAMS", (gone,))
    with pytest.raises(UnsupportedVLLMError, match=r"vllm\.v1\.engine\.Gone"):
        hooks.install()


@pytest.mark.parametrize("section", ["sauce", "sauce_harvest"])
@pytest.mark.parametrize("runner", ["v1", "v2"])
def test_a_missing_seam_stops_a_worker_of_its_runner(
    monkeypatch: pytest.MonkeyPatch, section: str, runner: str
) -> None:
    gone = Seam(runner, "vllm.v1.engine", "Gone")
    monkeypatch.setattr(seam_check, "SEAMS", (gone,))
    for name in ("install_edit", "install_tap"):
        monkeypatch.setattr(hooks, name, lambda: None)
    monkeypatch.setattr(own_models, "register_for", lambda config: None)
    settings = {"bundle": "unused"} if section == "sauce" else {}
    started: list[Any] = []

    def start(config: Any) -> None:
        hooks._worker_init(lambda self, config: started.append(config), None, config)

    config = types.SimpleNamespace(
        additional_config={section: settings}, use_v2_model_runner=runner == "v2"
    )
    with pytest.raises(UnsupportedVLLMError, match=r"vllm\.v1\.engine\.Gone"):
        start(config)
    assert not started
    config.use_v2_model_runner = not config.use_v2_model_runner
    start(config)
    assert started, "the other runner has no need of it"


def test_without_sauce_a_worker_is_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(seam_check, "SEAMS", (Seam("worker", "vllm", "Gone"),))
    started: list[Any] = []
    config = types.SimpleNamespace(additional_config={}, use_v2_model_runner=True)
    hooks._worker_init(lambda self, config: started.append(config), None, config)
    assert started


SOURCE = """\
from vllm.elsewhere import group_and_batch_mm_kwargs
class GPUModelRunner(Base):
    model: Module
    if True:
        def _dummy_run(self, num_tokens, *, other=0): ...
    def __init__(self):
        self.input_batch = {}
        self.untaken: int
    async def _execute_mm_encoder(self, scheduler_output):
        for batch in group_and_batch_mm_kwargs(self.x()): ...
"""


def test_a_source_is_recorded_without_importing_it(tmp_path: Path) -> None:
    """A tree of sources in, what the table asks about out."""
    worker = tmp_path / "tree" / "vllm" / "v1" / "worker"
    worker.mkdir(parents=True)
    (worker / "gpu_model_runner.py").write_text(SOURCE)
    (tmp_path / "tree/vllm/_version.py").write_text(
        "__version__ = version = '0.30.0+cpu'\n"
    )
    script = tmp_path / "scripts" / "record_seams.py"
    script.parent.mkdir()
    script.write_text((ROOT / "scripts" / "record_seams.py").read_text())
    (tmp_path / "tests" / "plugin" / "compat").mkdir(parents=True)
    (tmp_path / "vllm_sauce").symlink_to(ROOT / "vllm_sauce")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "tree"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(
        (tmp_path / "tests/plugin/compat/seams/0.30.0.json").read_text()
    )
    at = "vllm.v1.worker.gpu_model_runner"
    assert record == {
        f"{at}.group_and_batch_mm_kwargs": {"from": ["vllm.elsewhere"]},
        f"{at}.GPUModelRunner": {"has": ["input_batch", "model"]},
        f"{at}.GPUModelRunner._dummy_run": {
            "params": ["self", "num_tokens", "other"],
            "calls": [],
        },
        f"{at}.GPUModelRunner._execute_mm_encoder": {
            "params": ["self", "scheduler_output"],
            "calls": ["group_and_batch_mm_kwargs"],
        },
    }


def test_what_is_no_vllm_is_not_recorded(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "record_seams.py", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("record_seams: wanted a wheel or folder with vllm/")
