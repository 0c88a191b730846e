# SPDX-License-Identifier: Apache-2.0
"""What each process of a server finds in its configuration."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.places import TINY
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Catalogue, Concept, SiteEdit
from vllm_sauce.config import SauceConfig
from vllm_sauce.errors import BundleCorruptError, BundleNotFoundError, ConfigError
from vllm_sauce.plugin.startup import settings

TINY = (TINY).resolve()

# As vLLM's API server processes do it: plugins load while engine arguments are made.
CHILD = """
import json, pickle, sys
for args in pickle.load(sys.stdin.buffer):
    from vllm.engine.arg_utils import AsyncEngineArgs

    engine_args = AsyncEngineArgs.from_cli_args(args)
    config = engine_args.create_engine_config()
    print("CONFIG", json.dumps(config.additional_config))
"""


def parse(*argv: str) -> Any:
    """Parse a server's command line with vLLM's own parser."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())
    return parser.parse_args(
        ["--model", str(TINY / "model"), "--dtype", "float32", *argv]
    )


@pytest.mark.engine
def test_a_process_that_is_handed_the_arguments_has_the_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By flags, JSON and variables, each without the other two in the child."""
    monkeypatch.chdir(TINY)
    routes = [
        parse(
            "--plugin", "sauce", "--sauce-bundle", "latents", "--sauce-forget", "dog"
        ),
        parse(
            "--additional-config", '{"sauce": {"bundle": "latents", "forget": ["dog"]}}'
        ),
    ]
    monkeypatch.setenv("VLLM_SAUCE_BUNDLE", "latents")
    monkeypatch.setenv("VLLM_SAUCE_FORGET", "dog")
    routes.append(parse())
    monkeypatch.delenv("VLLM_SAUCE_BUNDLE")
    monkeypatch.delenv("VLLM_SAUCE_FORGET")
    monkeypatch.chdir("/")
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=pickle.dumps(routes),
        capture_output=True,
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found = [
        json.loads(line.removeprefix("CONFIG "))["sauce"]
        for line in done.stdout.decode().splitlines()
        if line.startswith("CONFIG ")
    ]
    assert len(found) == 3
    for section in found:
        assert section == found[0]
        assert section["bundle"] == str(TINY / "latents")
        assert section["forget"] == ["dog"]
        assert section["digest"] == Bundle.load(TINY / "latents", weights=False).digest
        assert section["num_slots"] > 0 and section["max_num_tokens"] > 0


def vllm_config(**scheduler: int) -> Any:
    """Return a stand-in for ``VllmConfig`` with sauce."""
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 512, **scheduler}
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(**sizes),
        compilation_config=SimpleNamespace(cudagraph_capture_sizes=[1, 64]),
        additional_config={"sauce": {"bundle": "b"}},
    )


def test_the_tables_sizes_key_the_compiled_model() -> None:
    """They are burnt into its graph; vLLM's own key has not all of them."""
    config = vllm_config()
    sizes = settings.table_sizes(config)
    assert sizes == {"num_slots": 8, "max_num_tokens": 512}
    assert settings.table_sizes(vllm_config(max_num_seqs=16)) != sizes
    assert settings.table_sizes(vllm_config(max_num_batched_tokens=48)) == {
        "num_slots": 8,
        "max_num_tokens": 64,
    }
    config.additional_config["sauce"].update(sizes)
    read = settings.from_vllm_config(config)
    assert read is not None and read.bundle == "b"


def test_variables_are_read_and_checked() -> None:
    """VLLM_SAUCE_* say what the flags say; a misspelt one is an error."""
    assert settings.from_environment(
        {
            "VLLM_SAUCE_BUNDLE": "b",
            "VLLM_SAUCE_FORGET": "dog, red",
            "VLLM_SAUCE_MAX_LATENTS": "9",
            "VLLM_SAUCE_POOL_DTYPE": "fp8",
            "VLLM_SAUCE_CACHE": "folder",
            "VLLM_SAUCE_NATIVE": "0",
        }
    ) == {
        "bundle": "b",
        "forget": ["dog", "red"],
        "max_latents": 9,
        "pool_dtype": "fp8",
    }
    with pytest.raises(ConfigError, match="VLLM_SAUCE_FORGETS"):
        settings.from_environment({"VLLM_SAUCE_FORGETS": "dog"})
    with pytest.raises(ConfigError, match="whole number"):
        settings.from_environment({"VLLM_SAUCE_MAX_LATENTS": "many"})


# What a pod sees of Services named "vllm-sauce" and "vllm-sauce-cache".
SERVICE_LINKS = {
    "VLLM_SAUCE_PORT": "tcp://10.0.0.1:8000",
    "VLLM_SAUCE_SERVICE_HOST": "10.0.0.1",
    "VLLM_SAUCE_SERVICE_PORT": "8000",
    "VLLM_SAUCE_SERVICE_PORT_HTTP": "8000",
    "VLLM_SAUCE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
    "VLLM_SAUCE_PORT_8000_TCP_PROTO": "tcp",
    "VLLM_SAUCE_PORT_8000_TCP_PORT": "8000",
    "VLLM_SAUCE_PORT_8000_TCP_ADDR": "10.0.0.1",
    "VLLM_SAUCE_CACHE_PORT_53_UDP_ADDR": "10.0.0.2",
    "VLLM_SAUCE_CACHE_SERVICE_HOST": "10.0.0.2",
}


def test_a_service_of_our_name_stops_no_start() -> None:
    """Kubernetes' service links are passed over, with sauce and without."""
    plain = SimpleNamespace(additional_config={})
    assert settings.requested(plain, SERVICE_LINKS) is None
    asked = {**SERVICE_LINKS, "VLLM_SAUCE_BUNDLE": "b"}
    assert settings.requested(plain, asked) == {"bundle": "b"}


def test_variables_count_only_where_sauce_is_asked_for() -> None:
    """A wrong name ends a start with sauce; a right one is never passed over."""
    plain = SimpleNamespace(additional_config={})
    misspelt = {"VLLM_SAUCE_FORGOT": "dog"}
    assert settings.requested(plain, misspelt) is None
    for asked in (
        (plain, {**misspelt, "VLLM_SAUCE_BUNDLE": "b"}),
        (SimpleNamespace(additional_config={"sauce": {}}), misspelt),
    ):
        with pytest.raises(ConfigError, match="VLLM_SAUCE_FORGOT"):
            settings.requested(*asked)
    assert settings.requested(plain, {"VLLM_SAUCE_FORGET": "dog"}) == {
        "forget": ["dog"]
    }


def test_a_flag_wins_over_a_variable() -> None:
    """The nearer source counts."""
    args = SimpleNamespace(additional_config={"sauce": {"bundle": "flag"}})
    merged = settings.requested(
        args, {"VLLM_SAUCE_BUNDLE": "env", "VLLM_SAUCE_FORGET": "dog"}
    )
    assert merged == {"bundle": "flag", "forget": ["dog"]}
    assert settings.requested(SimpleNamespace(additional_config={}), {}) is None


def test_what_any_source_makes_mandatory_is_forgotten() -> None:
    """No source takes back another's; a child process finds the same again."""
    environ = {"VLLM_SAUCE_FORGET": "dog, red"}
    given = {"bundle": "b", "forget": ["cat", "red"]}
    merged = settings.requested(
        SimpleNamespace(additional_config={"sauce": given}), environ
    )
    assert merged == {"bundle": "b", "forget": ["cat", "red", "dog"]}
    again = SimpleNamespace(additional_config={"sauce": merged})
    assert settings.requested(again, environ) == merged
    none = SimpleNamespace(additional_config={"sauce": {"bundle": "b", "forget": []}})
    assert settings.requested(none, environ) == {
        "bundle": "b",
        "forget": ["dog", "red"],
    }
    wrong = SimpleNamespace(additional_config={"sauce": {"forget": "cat"}})
    assert settings.requested(wrong, environ) == {"forget": "cat"}  # refused later


@pytest.mark.parametrize("text", ["", " ", ",", "dog,", "dog, ,red"])
def test_a_blank_name_in_the_variable_is_refused(text: str) -> None:
    """As of a shell's variable that is not set: it asked, and nothing was forgotten."""
    plain = SimpleNamespace(additional_config={})
    with pytest.raises(ConfigError, match="VLLM_SAUCE_FORGET must be names of conc"):
        settings.requested(plain, {"VLLM_SAUCE_FORGET": text})


def test_the_bundle_beside_the_weights_is_found(tmp_path: Path) -> None:
    """Without --sauce-bundle, the model folder's sauce/ is used, else an error."""
    with pytest.raises(BundleNotFoundError, match="--sauce-bundle"):
        settings.locate_bundle({}, tmp_path)
    (tmp_path / "sauce").mkdir()
    assert settings.locate_bundle({}, tmp_path) == str((tmp_path / "sauce").resolve())


def test_a_bundle_may_be_named_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit fetched before is found without a network, and read like any bundle."""
    commit = "0123456789abcdef" * 2 + "01234567"
    kept = tmp_path / "bundles" / "org--name" / commit
    shutil.copytree(TINY / "latents", kept)
    monkeypatch.setenv("VLLM_SAUCE_CACHE", str(tmp_path))
    given = {"bundle": f"org/name@{commit}"}
    assert settings.locate_bundle(given, None) == str(kept)
    (kept / "bundle.json").write_text("{}")
    with pytest.raises(BundleCorruptError):
        settings.locate_bundle(given, None)


def test_mandatory_concepts_that_contradict_end_the_start() -> None:
    """Every request would be refused, each for itself."""
    edits = {"up": SiteEdit.uniform((1, 5), 3.0), "down": SiteEdit.uniform((5, 9), 0.0)}
    catalogue = Catalogue(
        [Concept(name=n, domain="d", edits={"decoder.1": e}) for n, e in edits.items()]
    )
    settings._check_concepts(SauceConfig(bundle="b", forget=("up",)), catalogue)
    with pytest.raises(ConfigError, match="mandatory concepts: down, up move latent 5"):
        settings._check_concepts(
            SauceConfig(bundle="b", forget=("up", "down")), catalogue
        )
