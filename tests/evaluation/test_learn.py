# SPDX-License-Identifier: Apache-2.0
"""The stages of ``sauce learn``: their order, what is run again, what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vllm_sauce.errors import ConfigError, LearnError
from vllm_sauce.evaluation.learn import LearnRequest, learn, stages
from vllm_sauce.evaluation.learn_plan import (
    Counts,
    ModelSize,
    as_table,
    matrix_rate,
    plan,
    planned,
    site_saes,
)

TINY = Path(__file__).parents[2] / "examples/tiny"


@pytest.fixture
def request_(tmp_path):
    (tmp_path / "concepts.yaml").write_text("version: 1\n")
    return LearnRequest(
        model=str(TINY / "model"),
        sites=("vision", "decoder.1"),
        concepts=tmp_path / "concepts.yaml",
        out=tmp_path / "bundle",
        saes={"decoder.1": str(TINY / "bundle")},
    )


class Sauce:
    """Stands where the processes do: leaves what they would leave, or fails."""

    def __init__(self, request, fails_at=()):
        self.results = {stage.command: stage.result for stage in stages(request)}
        self.fails_at, self.ran = fails_at, []

    def __call__(self, command):
        self.ran.append(command[0])
        if command[0] in self.fails_at:
            return 2
        result = self.results[tuple(command)]
        result.parent.mkdir(parents=True, exist_ok=True)
        if result.name != "harvest.done":
            result.write_text("{}")
        return 0


def names(request):
    return [stage.name for stage in stages(request)]


def test_what_is_given_is_not_trained(request_):
    assert names(request_) == [
        "harvest concepts",
        "train vision",
        "select vision",
        "select decoder.1",
        "calibrate",
        "inspect",
    ]
    given = replace(request_, saes={"vision": "org/public", "decoder.1": "other"})
    assert names(given)[1:3] == ["import vision", "import decoder.1"]
    more = replace(request_, train_pictures=TINY / "pictures", report=False)
    assert names(more)[:3] == [
        "harvest concepts", "harvest training pictures", "train vision"
    ]  # fmt: skip


def test_the_stages_hand_their_results_on(request_):
    commands = {stage.name: stage.command for stage in stages(request_)}

    def value(stage, option):
        command = commands[stage]
        return [command[i + 1] for i, word in enumerate(command) if word == option]

    sae = str(request_.folder / "sae-vision")
    assert value("train vision", "--out") == [sae]
    assert value("select vision", "--sae") == [sae]
    assert value("select decoder.1", "--sae") == [str(TINY / "bundle")]
    assert f"vision={sae}" in value("calibrate", "--sae")
    for site in request_.sites:
        assert value(f"select {site}", "--out")[0] in value("calibrate", "--selection")
    assert commands["inspect"][1] == value("calibrate", "--out")[0]


def test_a_failed_stage_stops_and_is_where_it_goes_on(request_):
    failing = Sauce(request_, fails_at=("calibrate",))
    with pytest.raises(LearnError, match="calibrate ended with status 2"):
        learn(request_, run=failing)
    assert failing.ran == ["harvest", "train", "select", "select", "calibrate"]
    again = Sauce(request_)
    told = []
    seconds = learn(request_, lambda *said: told.append(said[2:]), again)
    assert again.ran == ["calibrate", "inspect"]
    assert ("train vision", "done before") in told
    assert list(seconds) == names(request_)
    assert learn(request_, run=Sauce(request_, fails_at=("harvest",))) == seconds


def test_a_lost_result_is_made_again(request_):
    learn(request_, run=Sauce(request_))
    (request_.folder / "selection-vision.json").unlink()
    again = Sauce(request_)
    learn(request_, run=again)
    assert again.ran == ["select"]


def test_a_stage_that_leaves_nothing_is_named(request_):
    with pytest.raises(LearnError, match="harvest concepts left no"):
        learn(request_, run=lambda command: 0)

    def trains_nothing(command):
        return 0 if command[0] == "train" else Sauce(request_)(command)

    with pytest.raises(LearnError, match="train vision left no"):
        learn(request_, run=trains_nothing)


def test_single_samples_may_fail(request_):
    def harvest_fails_one(command):
        if command[0] != "harvest":
            return Sauce(request_)(command)
        folder = request_.folder / "harvest"
        folder.mkdir()
        (folder / "failures.jsonl").write_text("{}\n")
        return 1

    told = []
    learn(request_, lambda *said: told.append(said[3]), harvest_fails_one)
    assert any("failures.jsonl" in said for said in told)
    fresh = replace(request_, out=request_.out.with_name("other"))
    # A crash ends with 1 as well, but leaves no list of failures.
    with pytest.raises(LearnError, match="harvest concepts ended with status 1"):
        learn(fresh, run=lambda command: 1)


def test_another_runs_folder_is_refused(request_):
    learn(request_, run=Sauce(request_))
    with pytest.raises(ConfigError, match="differs in tokens"):
        learn(replace(request_, tokens=5), run=Sauce(request_))
    request_.concepts.write_text("version: 1 # changed\n")
    with pytest.raises(ConfigError, match="differs in concepts_sha256"):
        learn(request_, run=Sauce(request_))
    missing = replace(request_, concepts=request_.out / "no.yaml")
    with pytest.raises(ConfigError, match="no concepts.yaml"):
        learn(missing, run=Sauce(request_))


def test_a_bundle_that_is_there_is_not_touched(request_):
    request_.out.mkdir()
    with pytest.raises(ConfigError, match="is there already"):
        learn(request_, run=Sauce(request_))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sites": ()}, "each site once"),
        ({"sites": ("vision", "vision")}, "each site once"),
        ({"sites": ("vision",)}, "given for decoder.1, which is not"),
        ({"sites": ("tower",)}, "a site is"),
    ],
)
def test_sites_that_make_no_sense_are_refused(request_, options, words):
    with pytest.raises(ConfigError, match=words):
        replace(request_, **options)


def test_pairs_are_read():
    assert site_saes(["vision=a/b@c=d"]) == {"vision": "a/b@c=d"}
    for bad, words in ((["vision"], "wanted SITE=SAE"), (["a=b", "a=c"], "twice")):
        with pytest.raises(ConfigError, match=words):
            site_saes(bad)


def llava_7b(folder):
    """LLaVA-1.5-7B's sizes, as its config.json says them."""
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "torch_dtype": "float16",
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return ModelSize.read(folder)


def test_a_paper_sized_plan_has_the_papers_sizes(request_, tmp_path):
    """65,536 latents at LLaVA-1.5's tower, 2.56 M tokens: SAUCE's own set-up."""
    size = llava_7b(tmp_path)
    assert size.patches == 576
    # Llama 7B has 6.48 G numbers outside its embeddings, CLIP-L/14 0.30 G.
    assert size.text_parameters == pytest.approx(6.48e9, rel=0.01)
    assert size.vision_parameters == pytest.approx(0.30e9, rel=0.02)
    paper = replace(
        request_, sites=("vision",), saes={}, d_sae=65_536, tokens=2_560_000
    )
    lines = {line.stage: line for line in plan(paper, Counts(400, 400, 1), size)}
    train = lines["train vision"]
    # W_enc and W_dec in float32.
    assert train.disk == 2 * 1024 * 65_536 * 4
    assert train.memory > 4 * train.disk
    assert train.operations == 12 * 2_560_000 * 1024 * 65_536
    harvest = lines["harvest concepts"]
    assert harvest.tokens == 400 * 576
    assert harvest.disk == 400 * 576 * (1024 * 2 + 9)
    text = as_table(list(lines.values()), 1e12)
    assert text.row_count == len(lines) + 1


def test_more_work_takes_more(request_, tmp_path):
    size = llava_7b(tmp_path)
    few, many = (
        sum(line.operations for line in plan(request_, Counts(n, n, n), size))
        for n in (100, 200)
    )
    assert few < many


def test_the_rate_is_this_machines():
    rate = matrix_rate("cpu", 0.05)
    assert 1e8 < rate < 1e14
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no device 'cuda' here"):
            matrix_rate("cuda")


def test_the_plan_counts_what_the_file_leads_to(request_):
    table = planned(replace(request_, concepts=TINY / "concepts.yaml"))
    assert table.row_count == 6
    with pytest.raises(ConfigError, match="cannot read"):
        ModelSize.read(TINY / "pictures")
