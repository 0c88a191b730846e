# SPDX-License-Identifier: Apache-2.0
"""Flags, variables and ``additional_config`` say the same thing."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vllm_sauce
from tests.places import TINY
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Catalogue
from vllm_sauce.errors import (
    BundleMismatchError,
)
from vllm_sauce.plugin import compat
from vllm_sauce.plugin.startup import flags, settings

TINY = (TINY).resolve()
SHIPPED = TINY / "latents"
SAUCE = ("--plugin", "sauce", "--sauce-bundle", str(SHIPPED))


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine sets decides nothing here."""
    for name in settings.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def parse(*argv: str) -> Any:
    """Parse a command line as ``vllm serve`` does: with a command, and its model."""
    main = argparse.ArgumentParser()
    parser = main.add_subparsers(dest="command").add_parser("serve")
    parser.add_argument("model_tag", nargs="?")
    parser.add_argument("--model", default="default/model")
    parser.add_argument("--additional-config", type=json.loads, default={"kept": 1})
    parser.add_argument("--port")
    flags._add_cli_args(lambda p: p, parser)
    return main.parse_args(["serve", *argv])


def parse_model(*argv: str) -> Any:
    """Parse a command line that names its model as it should."""
    return parse(str(TINY / "model"), *argv)


def forgotten(args: Any) -> Any:
    """Return the concepts that parsed arguments make mandatory."""
    return args.additional_config["sauce"]["forget"]


def test_flags_become_additional_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flag has its setting, other settings stay; what it names is looked up."""
    monkeypatch.chdir(TINY)
    args = parse_model(
        *("--plugin", "sauce", "--sauce-bundle", "latents", "--sauce-forget", "dog"),
        *("--sauce-forget", "blue", "--sauce-max-latents", "777"),
        *("--sauce-pool-dtype", "fp8", "--sauce-approximate", "relu"),
        *("--sauce-require-decoder", "--sauce-allow-weak", "dog", "cat"),
        "--sauce-allow-quantized",
    )
    bundle = Bundle.load(SHIPPED, weights=False)
    assert args.additional_config == {
        "kept": 1,
        "sauce": {
            "bundle": str(SHIPPED),
            "forget": ["dog", "blue"],
            "max_latents": 777,
            "max_concepts": 64,
            "pool_dtype": "fp8",
            "approximate": "relu",
            "require_decoder": True,
            "allow_quantized": True,
            "allow_weak": ["dog", "cat"],
            "digest": bundle.digest,
            "sites": ["decoder.1", "vision"],
            "version": vllm_sauce.__version__,
        },
    }


def test_variables_and_json_reach_the_parsed_arguments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever way sauce was asked for, another process finds the same there."""
    by_flags = parse_model(*SAUCE, "--sauce-forget", "dog").additional_config
    section = json.dumps({"sauce": {"bundle": str(SHIPPED), "forget": ["dog"]}})
    by_json = parse_model("--additional-config", section).additional_config
    monkeypatch.setenv("VLLM_SAUCE_BUNDLE", str(SHIPPED))
    monkeypatch.setenv("VLLM_SAUCE_FORGET", "dog")
    by_variables = parse_model().additional_config
    assert by_json["sauce"] == by_variables["sauce"] == by_flags["sauce"]


def test_flags_variables_and_json_make_mandatory_together(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever wants fewer says so where the others are asked for."""
    monkeypatch.setenv("VLLM_SAUCE_FORGET", "dog")
    section = json.dumps({"sauce": {"forget": ["blue"]}})
    told = ("--sauce-forget", "cat", "--additional-config", section)
    assert forgotten(parse_model(*SAUCE, *told)) == ["cat", "blue", "dog"]
    monkeypatch.setenv("VLLM_SAUCE_FORGET", "")
    assert "where one is blank" in refusal(capsys, str(TINY / "model"), *SAUCE)


def test_without_the_flag_nothing_changes() -> None:
    """Installed but not asked for."""
    assert parse().additional_config == {"kept": 1}


def refusal(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Return the sentence a command line is refused with, which is no traceback."""
    with pytest.raises(SystemExit):
        parse(*argv)
    return capsys.readouterr().err


def test_sauce_flags_need_the_plugin_flag(capsys: pytest.CaptureFixture[str]) -> None:
    """Else a forgotten --plugin would serve unedited."""
    assert "add --plugin sauce" in refusal(capsys, "m", "--sauce-forget", "dog")


@pytest.mark.parametrize(
    "given", [("dog", "red"), ("dog", "--port", "1", "--sauce-forget", "red")]
)
def test_a_list_of_concepts_is_whole(given: tuple[str, ...]) -> None:
    """Several values, as vLLM writes a list of its YAML, and several flags."""
    args = parse_model(*SAUCE, "--sauce-forget", *given)
    assert forgotten(args) == ["dog", "red"]
    assert args.model_tag == str(TINY / "model")


def test_one_value_with_an_equals_sign_leaves_the_model_alone() -> None:
    args = parse(*SAUCE, "--sauce-forget=dog", str(TINY / "model"))
    assert forgotten(args) == ["dog"]
    assert args.model_tag == str(TINY / "model")


def test_a_model_is_not_taken_for_a_concept(capsys: pytest.CaptureFixture[str]) -> None:
    """Else vLLM's default model would be served instead."""
    told = refusal(capsys, *SAUCE, "--sauce-forget", "dog", "some/model")
    assert "'some/model' was read as a concept" in told
    assert "vllm serve MODEL" in told
    assert "no model is named" in refusal(capsys, *SAUCE)
    told = refusal(capsys, "--sauce-bundle", str(SHIPPED), "--plugin", "sauce", "a/b")
    assert "unknown plugin 'a/b'" in told and "before the flags" in told
    args = parse(*SAUCE, "--sauce-forget", "dog", "red", "--model", str(TINY / "model"))
    assert forgotten(args) == ["dog", "red"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--plugin", "sauce", "--sauce-bundle", "no/such/place"), "no/such/place"),
        ((*SAUCE, "--sauce-forget", "dgo"), "did you mean 'dog'"),
        (("--additional-config", '{"sauce": true}'), "must be an object, got True"),
        (
            ("--plugin", "sauce", "--additional-config", '{"sauce": true}'),
            "wants an object for 'sauce', got True",
        ),
        (("--plugin", "sauce", "--additional-config", "[1]"), "got [1]"),
        ((*SAUCE, "--additional-config", '{"sauce": {"digest": "0"}}'), "wanted 0"),
    ],
)
def test_what_cannot_be_served_is_refused_in_a_sentence(
    argv: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refusal(capsys, str(TINY / "model"), *argv)


def test_a_bundle_replaced_during_the_start_is_refused(tmp_path: Path) -> None:
    """A process that is handed the arguments looks whether it finds the same."""
    shutil.copytree(SHIPPED, tmp_path / "bundle")
    args = parse_model("--plugin", "sauce", "--sauce-bundle", str(tmp_path / "bundle"))
    text = (tmp_path / "bundle/bundle.json").read_text()
    (tmp_path / "bundle/bundle.json").write_text(text + "\n")
    with pytest.raises(BundleMismatchError, match="changed while the server started"):
        settings.resolve(args)


def vision_only() -> str:
    """Return a shipped concept that no decoder site edits."""
    catalogue = Bundle.load(SHIPPED, weights=False).catalogue
    return next(n for n in catalogue.names() if set(catalogue[n].edits) == {"vision"})


def test_concepts_forgotten_in_pictures_only_can_be_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``--sauce-require-decoder``: text alone goes around the other sites."""
    name, model = vision_only(), str(TINY / "model")
    told = refusal(
        capsys, model, *SAUCE, "--sauce-forget", "dog", name, "--sauce-require-decoder"
    )
    assert f"without an edit in the decoder: {name};" in told
    assert "dog" in forgotten(
        parse_model(*SAUCE, "--sauce-forget", "dog", "--sauce-require-decoder")
    )


def test_a_mandatory_concept_that_is_not_forgotten_stops_the_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By the bundle's own figures, unless the operator allows it by name."""
    shipped = Bundle.load(SHIPPED)
    concepts = [
        replace(one, forgotten=one.name not in ("dog", "wood"))
        for one in shipped.catalogue.values()
    ]
    saes = {site: sae.weights for site, sae in shipped.sites.items()}
    Bundle.build(shipped.fingerprint, saes, Catalogue(concepts)).save(tmp_path / "b")
    flags = ("--plugin", "sauce", "--sauce-bundle", str(tmp_path / "b"))
    model = str(TINY / "model")
    told = refusal(capsys, model, *flags, "--sauce-forget", "cat", "dog")
    assert "mandatory concepts: this bundle was found not to forget 'dog'" in told
    told = refusal(capsys, model, *flags, "--sauce-allow-weak", "dgo")
    assert "--sauce-allow-weak: unknown concept 'dgo': did you mean 'dog'" in told
    allowed = ("--sauce-forget", "cat", "dog", "--sauce-allow-weak", "dog")
    assert "dog" in forgotten(parse_model(*flags, *allowed))


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a start warns of."""
    warned: list[str] = []
    monkeypatch.setattr(
        compat,
        "logger",
        lambda _: SimpleNamespace(
            info=lambda *_: None, warning=lambda text, *a: warned.append(text % a)
        ),
    )
    return warned


def engine_config(
    *flags: str,
    dtype: str = "float32",
    quantization: str | None = None,
    cache_dtype: str = "auto",
) -> Any:
    """A configuration with what is read of it at the end of a start."""
    args = parse_model(*SAUCE, *flags)
    args.model_config = SimpleNamespace(
        dtype=f"torch.{dtype}",
        enforce_eager=True,
        quantization=quantization,
    )
    args.cache_config = SimpleNamespace(cache_dtype=cache_dtype)
    args.lora_config = None
    return args


def test_concepts_forgotten_in_pictures_only_are_named_at_the_start(
    warned: list[str],
) -> None:
    name = vision_only()
    bundle = Bundle.load(SHIPPED, weights=False)
    for forget in (["dog", name], ["dog"]):
        settings._say_what_runs(engine_config("--sauce-forget", *forget), bundle)
    # The latents' edits are those of version 1, which do not spare the sink.
    (line,) = (t for t in warned if "sink" not in t and "config.json" not in t)
    assert f"decoder: {name}; a question without a picture" in line


def test_a_start_says_with_how_many_concepts_at_once_a_bundle_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The largest number; of a bundle that does not tell, one."""
    said: list[str] = []
    logger = SimpleNamespace(
        info=lambda text, *a: said.append(text % a), warning=lambda *_: None
    )
    monkeypatch.setattr(compat, "logger", lambda _: logger)
    bundle = Bundle.load(SHIPPED)
    for counts in ((), (9, 30, 12)):
        together = {n: {"kept name": 1 - n / 100} for n in counts}
        told = bundle.with_figures(bundle.catalogue, together)
        settings._say_what_runs(engine_config(), told)
    assert "measured one at a time alone, mandatory" in said[0]
    kept = "kept of all else: 0.91 with 9, 0.88 with 12, 0.70 with 30"
    assert f"measured with up to 30 at once ({kept}), mandatory" in said[1]


def test_a_bundle_that_was_measured_otherwise_is_named_at_the_start(
    warned: list[str], tmp_path: Path
) -> None:
    """Rounding and compiled code may move what an edit does."""
    shipped = Bundle.load(SHIPPED)
    mode = {"dtype": "float32", "eager": True}
    concepts = [
        replace(one, provenance={"measured_as": mode})
        for one in shipped.catalogue.values()
    ]
    saes = {site: sae.weights for site, sae in shipped.sites.items()}
    built = Bundle.build(shipped.fingerprint, saes, Catalogue(concepts))
    built.save(tmp_path / "bundle")
    bundle = Bundle.load(tmp_path / "bundle", weights=False)
    settings._say_what_runs(engine_config(), bundle)
    assert not any("measured in" in text for text in warned)
    settings._say_what_runs(engine_config(dtype="bfloat16"), bundle)
    (line,) = (text for text in warned if "measured in" in text)
    assert "measured in float32, eager, and are served in bfloat16, eager" in line
    warned.clear()
    fewer = engine_config(
        "--sauce-allow-quantized", quantization="awq", cache_dtype="fp8"
    )
    settings._say_what_runs(fewer, bundle)
    (line,) = (text for text in warned if "measured in" in text)
    assert "served in float32, eager, quantization awq, kv_cache fp8:" in line
    assert any("served quantised (awq)" in text for text in warned)


def test_a_bundle_that_does_not_know_its_models_config_is_named_at_the_start(
    warned: list[str],
) -> None:
    shipped = Bundle.load(SHIPPED)
    mine = shipped.fingerprint
    known = replace(shipped, fingerprint=mine.model_copy(update={"config": {}}))
    without = replace(shipped, fingerprint=mine.model_copy(update={"config": None}))
    settings._say_what_runs(engine_config(), known)
    assert not any("config.json" in text for text in warned)
    settings._say_what_runs(engine_config(), without)
    (line,) = (text for text in warned if "config.json" in text)
    assert line.endswith(f"sauce stamp {SHIPPED} MODEL")


def test_adapters_are_not_what_a_bundle_was_measured_with(warned: list[str]) -> None:
    bundle, config = Bundle.load(SHIPPED, weights=False), engine_config()
    settings._say_what_runs(config, bundle)
    assert not any("adapters" in text for text in warned)
    config.lora_config = object()
    settings._say_what_runs(config, bundle)
    assert any("measured without adapters" in text for text in warned)


@pytest.mark.parametrize("value", ["soss", "sauce,soss", ",", ""])
def test_unknown_plugins_are_refused(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A typo in the plugin's name ends the start."""
    assert "known: sauce" in refusal(capsys, "m", "--plugin", value)
