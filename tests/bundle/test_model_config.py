# SPDX-License-Identifier: Apache-2.0
"""A model of equal weights whose configuration says otherwise is another model."""

import json
import shutil

import pytest

from tests.bundle.test_bundle import D_MODEL, as_version, build_bundle, edit_json
from tests.cli.sauce import sauce
from tests.places import TINY_MODEL
from vllm_sauce.bundle import Bundle, fingerprint_model
from vllm_sauce.bundle.difference import differences
from vllm_sauce.errors import BundleCorruptError, BundleMismatchError, ConfigError


@pytest.fixture
def tiny(tmp_path):
    """A copy of sauce-tiny's files, and weights that are quickly hashed."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("config.json", "processor_config.json"):
        shutil.copy(TINY_MODEL / name, folder)
    (folder / "model.safetensors").write_bytes(b"weights")
    rewrite(folder, lambda data: data["text_config"].update(hidden_size=D_MODEL))
    return folder


def rewrite(folder, change, name="config.json"):
    path = folder / name
    data = json.loads(path.read_text())
    path.write_text(json.dumps(change(data) or data))


LEFT_OUT = object()


@pytest.mark.parametrize(
    ("key", "was", "becomes"),
    [
        ("vision_feature_layer", "-2", -3),
        ("vision_config.hidden_act", "'gelu'", "relu"),
        ("vision_config.layer_norm_eps", "1e-05", 0.3),
        ("text_config.rope_parameters.rope_theta", "10000.0", 5),
        ("text_config.head_dim", "32", None),
        ("vision_feature_layer", "-2", LEFT_OUT),
        ("sliding_window", "left out", None),
    ],
)
def test_what_the_config_says_otherwise_is_named(tiny, key, was, becomes):
    """With what was wanted and what was found."""
    bundle = build_bundle(tiny)
    bundle.check_model(tiny)

    def change(data):
        *outer, last = key.split(".")
        for name in outer:
            data = data[name]
        if becomes is LEFT_OUT:
            del data[last]
        else:
            data[last] = becomes

    rewrite(tiny, change)
    found = "left out" if becomes is LEFT_OUT else repr(becomes)
    said = f"config.json {key}: {was}, not {found}"
    with pytest.raises(BundleMismatchError) as caught:
        bundle.check_model(tiny)
    assert said in str(caught.value)
    assert bundle.fingerprint.differences(fingerprint_model(tiny)) == (said,)


def test_what_pictures_are_made_into_is_compared(tiny):
    bundle = build_bundle(tiny)

    def change(data):
        data["image_processor"]["image_std"] = [0.5, 0.5, 0.5]

    rewrite(tiny, change, "processor_config.json")
    with pytest.raises(BundleMismatchError) as caught:
        bundle.check_model(tiny)
    key = "processor_config.json image_processor.image_std"
    assert f"{key}: [0.25, 0.25, 0.25], not [0.5, 0.5, 0.5]" in str(caught.value)
    (tiny / "processor_config.json").rename(tiny / "preprocessor_config.json")
    assert bundle.fingerprint.differences(fingerprint_model(tiny)) == (
        "preprocessor_config.json: missing, not there",
        "processor_config.json: there, not missing",
    )


def test_order_and_noise_do_not_matter(tiny):
    """Who wrote it, in which type, quantised or not, and when an answer ends."""
    bundle = build_bundle(tiny)

    def noisy(data):
        data |= {"transformers_version": "9", "_name_or_path": "here", "dtype": "half"}
        data |= {"quantization_config": {"bits": 4}, "eos_token_id": [3, 7]}
        data["text_config"] |= {"torch_dtype": "bfloat16", "use_cache": False}
        data["text_config"] |= {"max_length": 5, "architectures": ["Llama"]}
        return dict(reversed(data.items()))

    rewrite(tiny, noisy)
    bundle.check_model(tiny)
    rewrite(tiny, lambda data: {**data, "chat_template": "x"}, "processor_config.json")
    bundle.check_model(tiny)


def test_a_quantised_copy_has_the_same_config(tiny):
    """It is the layers that the leave is not about."""
    bundle = build_bundle(tiny)
    (tiny / "model.safetensors").write_bytes(b"fewer bits")
    rewrite(tiny, lambda data: data.update(quantization_config={"bits": 4}))
    bundle.check_model(tiny, allow_quantized=True)
    rewrite(tiny, lambda data: data.update(vision_feature_layer=-1))
    with pytest.raises(BundleMismatchError, match="vision_feature_layer: -2, not -1"):
        bundle.check_model(tiny, allow_quantized=True)


def test_a_bundle_keeps_it(tiny, tmp_path):
    """Infinities, too, which its JSON cannot hold, and long lists."""

    def more(data):
        data["text_config"] |= {"limit": [0.0, float("inf")], "empty": {}}
        data["text_config"]["layer_types"] = ["full_attention"] * 40

    rewrite(tiny, more)
    built = build_bundle(tiny)
    built.save(tmp_path / "b")
    loaded = Bundle.load(tmp_path / "b")
    loaded.check_model(tiny)
    assert loaded.fingerprint == built.fingerprint == fingerprint_model(tiny)
    assert loaded.fingerprint.config is not None
    kept = loaded.fingerprint.config["config.json"]
    assert kept["text_config.limit"] == [0.0, "inf"]
    assert kept["text_config.empty"] == {}

    def less(data):
        del data["text_config"]["layer_types"]

    rewrite(tiny, less)
    (line,) = loaded.fingerprint.differences(fingerprint_model(tiny))
    assert line.endswith("…, not left out") and len(line) < 150


def test_another_models_config_is_not_told_in_full(tiny):
    before = fingerprint_model(tiny)
    (tiny / "processor_config.json").unlink()
    change = {name: 1 for name in "abcdefghijklmnop"}
    rewrite(tiny, lambda data: data.update(change))
    found = before.differences(fingerprint_model(tiny))
    assert len(found) == 13 and found[-1] == "and 5 more keys"


@pytest.mark.parametrize("number", [1, 2])
def test_older_versions_are_compared_without(tiny, tmp_path, number):
    """They load as they did; what they do not know is no difference."""
    build_bundle(tiny).save(tmp_path / "b")
    edit_json(tmp_path / "b", lambda data: data.update(version=number))
    with pytest.raises(BundleCorruptError, match=f"version {number} knows no config"):
        Bundle.load(tmp_path / "b")

    def older(data):
        as_version(number)(data)
        for concept in data["concepts"].values():
            for edit in concept["edits"].values():
                if number == 1:
                    del edit["tokens"]

    edit_json(tmp_path / "b", older)
    bundle = Bundle.load(tmp_path / "b")
    assert bundle.fingerprint.config is None
    rewrite(tiny, lambda data: data.update(vision_feature_layer=-3))
    bundle.check_model(tiny)


def test_a_bundle_of_before_is_stamped(tiny, tmp_path):
    """It edits as before, and is compared from then on."""
    folder = tmp_path / "b"
    build_bundle(tiny).save(folder)
    edit_json(folder, as_version(2))
    old = Bundle.load(folder)
    done = sauce("stamp", folder, tiny)
    assert done.exit_code == 0
    new = Bundle.load(folder)
    assert done.stdout.strip() == new.digest != old.digest
    assert differences(old, new) == ("model: config.json is compared now",)
    assert new.fingerprint == fingerprint_model(tiny)
    rewrite(tiny, lambda data: data.update(vision_feature_layer=-3))
    with pytest.raises(BundleMismatchError, match="vision_feature_layer"):
        new.check_model(tiny)
    with pytest.raises(BundleMismatchError, match="vision_feature_layer"):
        new.stamped(tiny)


def test_a_file_that_is_no_json_is_refused(tiny):
    (tiny / "processor_config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"processor_config\.json must hold"):
        fingerprint_model(tiny)
