# SPDX-License-Identifier: Apache-2.0
"""A local path is never looked up; of a hub repository only what is needed comes."""

import fnmatch

import huggingface_hub
import pytest

from vllm_sauce.errors import BundleNotFoundError, ConfigError
from vllm_sauce.learning.importing import sources

GEMMA = [
    "README.md",
    "resid_post/layer_9_width_16k/params.safetensors",
    "resid_post/layer_9_width_16k/config.json",
    "resid_post/layer_17_width_16k/params.safetensors",
    "resid_post/layer_17_width_16k/config.json",
]
QWEN = ["config.json", *(f"layer{i}.sae.pt" for i in range(24))]
LLAMA = ["L1R/hyperparams.json", "L1R/checkpoints/final.safetensors", "L1R/lm.json"]
VLM = ["a/config.json", "a/checkpoints/ae_1.pt", "a/checkpoints/ae_2.pt"]
ONE = ["cfg.json", "sae_weights.safetensors", "sparsity.safetensors", "a.ipynb"]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Let the hub hold the given files; returns what was downloaded."""
    asked: list[str | None] = []

    def hold(files):
        def download(name, revision=None, allow_patterns=None, **_):
            asked[:] = [
                file
                for file in files
                if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)
            ]
            asked.append(revision)
            for file in asked[:-1]:
                (tmp_path / str(file)).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / str(file)).touch()
            return str(tmp_path)

        monkeypatch.setattr(
            huggingface_hub, "list_repo_files", lambda name, revision=None: files
        )
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return asked

    return hold


@pytest.mark.parametrize(
    ("files", "subfolder", "wanted"),
    [
        (GEMMA, "resid_post/layer_9_width_16k", GEMMA[1:3]),
        (QWEN, "layer7.sae.pt", ["config.json", "layer7.sae.pt"]),
        (LLAMA, "L1R", LLAMA),
        (VLM, "a/checkpoints/ae_2.pt", ["a/config.json", "a/checkpoints/ae_2.pt"]),
        (ONE, None, ONE[:3]),
    ],
)
def test_only_one_sae_is_downloaded(repository, tmp_path, files, subfolder, wanted):
    asked = repository(files)
    found = sources.sae_path("owner/name@v1", subfolder)
    assert found == (tmp_path / subfolder if subfolder else tmp_path)
    assert sorted(asked[:-1]) == sorted(wanted)
    assert asked[-1] == "v1"


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (GEMMA, "resid_post/layer_17_width_16k"),
        (QWEN, "layer0.sae.pt"),
        (["README.md"], "holds no SAE"),
    ],
)
def test_a_repository_of_many_wants_one_named(repository, files, word):
    asked = repository(files)
    with pytest.raises(BundleNotFoundError, match=word):
        sources.sae_path("owner/name")
    assert asked == []


def test_a_folder_that_is_not_there_is_told_with_those_that_are(repository):
    repository(GEMMA)
    with pytest.raises(BundleNotFoundError, match="in layer_3; .*layer_17_width_16k"):
        sources.sae_path("owner/name", "layer_3")


def test_a_model_comes_without_other_formats(repository, tmp_path):
    files = ["config.json", "a.safetensors", "pytorch_model.bin", "original/x.json"]
    asked = repository(files)
    assert sources.model_path("owner/model") == tmp_path
    assert asked[:-1] == files[:2]


def test_local_paths_and_what_is_neither(tmp_path):
    (tmp_path / "sub").mkdir()
    assert sources.sae_path(str(tmp_path), "sub") == tmp_path / "sub"
    assert sources.sae_path(str(tmp_path)) == tmp_path
    with pytest.raises(BundleNotFoundError, match="no other"):
        sources.sae_path(str(tmp_path), "other")
    with pytest.raises(ConfigError, match="inside"):
        sources.sae_path(str(tmp_path), "../x")
    for name in ("./nothing/here/at/all", "nothing", "/nothing/here"):
        with pytest.raises(BundleNotFoundError, match="neither a path"):
            sources.sae_path(name)
        with pytest.raises(ConfigError, match="neither a path"):
            sources.model_path(name)


def test_without_a_network_the_cache_is_used_or_the_error_says_so(
    tmp_path, monkeypatch
):
    def no_network(name, revision=None):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", no_network)
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, revision=None, local_files_only=False: str(tmp_path),
    )
    assert sources.sae_path("owner/name") == tmp_path

    with pytest.raises(BundleNotFoundError, match="cache lacks layer_9"):
        sources.sae_path("owner/name", "layer_9")

    def not_cached(name, revision=None, local_files_only=False):
        raise FileNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    with pytest.raises(BundleNotFoundError, match="cannot be reached.*no route"):
        sources.sae_path("owner/name")


def test_a_model_whose_download_stopped_is_refused(tmp_path, repository):
    """Its fingerprint would be another model's."""
    files = ["config.json", "a.safetensors"]
    repository(files)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}')
    with pytest.raises(ConfigError, match=r"lacks b.safetensors of owner/model"):
        sources.model_path("owner/model")
    index.write_text("[]")
    with pytest.raises(ConfigError, match="no list of the model's files"):
        sources.model_path("owner/model")
