# SPDX-License-Identifier: Apache-2.0
"""What is sampled is what the model computes at the site."""

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tests.learning.importing.layouts import MODEL, PICTURES
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.importing.site_samples import (
    TEXTS,
    drawn_pictures,
    read_activations,
    read_pictures,
    read_texts,
    sample_activations,
    sites_compared,
)


def test_texts_are_read_without_their_first_token():
    sampled = sample_activations(MODEL, "decoder.2", ["is there a dog?"])
    model = LlavaForConditionalGeneration.from_pretrained(MODEL)
    ids = AutoProcessor.from_pretrained(MODEL).tokenizer(
        "is there a dog?", return_tensors="pt"
    )["input_ids"]
    with torch.inference_mode():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states
    # hidden_states[i + 1] is what layer i puts out, but the last has been normalised.
    torch.testing.assert_close(sampled["decoder.2"], hidden[3][0, 1:])
    torch.testing.assert_close(sampled["decoder.0"], hidden[1][0, 1:])


def test_pictures_at_both_sites(vision, decoder):
    assert set(vision) == {
        "vision",
        *(f"vision (tower layer {i})" for i in (-4, -3, -1)),
    }
    assert vision["vision"].shape == (16 * 49, 256)
    assert set(decoder) == {f"decoder.{i}" for i in range(4)}
    assert decoder["decoder.1"].shape[1] == 192
    assert len(decoder["decoder.1"]) > 16 * 49


def test_a_tower_s_other_layers_are_those_of_the_tower(vision):
    model = LlavaForConditionalGeneration.from_pretrained(MODEL)
    pixels = AutoProcessor.from_pretrained(MODEL).image_processor(
        read_pictures(PICTURES), return_tensors="pt"
    )["pixel_values"]
    with torch.inference_mode():
        hidden = model.model.vision_tower(pixels, output_hidden_states=True)
    for name, layer in (("vision", -2), ("vision (tower layer -4)", -4)):
        want = hidden.hidden_states[layer][:, 1:].flatten(0, 1)
        torch.testing.assert_close(vision[name], want, atol=1e-4, rtol=1e-4)


def test_defaults_need_nothing_from_the_user():
    assert len(sample_activations(MODEL, "vision")["vision"]) == 8 * 49
    assert len(sample_activations(MODEL, "decoder.0")["decoder.0"]) > 5 * len(TEXTS)
    first, again = drawn_pictures(), drawn_pictures()
    assert [p.tobytes() for p in first] == [p.tobytes() for p in again]


def test_every_layer_of_the_decoder_is_compared():
    assert sites_compared("vision", 4) == ("vision",)
    assert sites_compared("decoder.2", 3) == ("decoder.0", "decoder.1", "decoder.2")
    with pytest.raises(ConfigError, match="4 decoder layers"):
        sites_compared("decoder.4", 4)


def test_long_inputs_are_thinned_alike_at_every_layer():
    long = ["is there a dog in the picture? " * 20] * 40
    sampled = sample_activations(MODEL, "decoder.1", long)
    assert {len(x) for x in sampled.values()} == {40 * 26}
    model = LlavaForConditionalGeneration.from_pretrained(MODEL)
    ids = AutoProcessor.from_pretrained(MODEL).tokenizer(long[0], return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**ids, output_hidden_states=True).hidden_states[2][0]
    torch.testing.assert_close(sampled["decoder.1"][0], hidden[1])
    torch.testing.assert_close(sampled["decoder.1"][25], hidden[-1])


def test_inputs_that_the_model_cannot_read():
    with pytest.raises(ConfigError, match="could not be run.*--activations"):
        sample_activations(MODEL, "vision", pictures=["no picture"])


def test_activations_from_a_file(tmp_path):
    path = tmp_path / "x.safetensors"
    x = torch.randn(3, 4, 5)
    save_file({"anything": x.half()}, path)
    torch.testing.assert_close(
        read_activations(path, "vision")["vision"], x.half().float().flatten(0, 1)
    )
    save_file({"decoder.1": x, "decoder.2": x + 1}, path)
    assert set(read_activations(path, "decoder.1")) == {"decoder.1", "decoder.2"}
    with pytest.raises(ConfigError, match="one called decoder.3"):
        read_activations(path, "decoder.3")
    nan = torch.tensor([[1.0, float("nan")]] * 3)
    for bad in (nan, torch.ones(1, 4), torch.ones(5), torch.tensor(1.0)):
        save_file({"x": bad}, path)
        with pytest.raises(ConfigError, match="finite"):
            read_activations(path, "vision")
    path.write_bytes(b"no")
    with pytest.raises(ConfigError, match="no activations"):
        read_activations(path, "vision")


def test_files_of_inputs(tmp_path):
    (tmp_path / "t.txt").write_text("one\n\n two \n")
    assert read_texts(tmp_path / "t.txt") == ["one", "two"]
    (tmp_path / "t.txt").write_text("\n")
    for path in (tmp_path / "t.txt", tmp_path / "none"):
        with pytest.raises(ConfigError, match="holds no text|cannot read texts"):
            read_texts(path)
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(ConfigError, match="no pictures"):
            read_pictures(path)
    assert len(read_pictures(PICTURES)) == 16


def test_a_model_that_transformers_cannot_load(tmp_path):
    with pytest.raises(ConfigError, match="--activations"):
        sample_activations(tmp_path, "vision")
