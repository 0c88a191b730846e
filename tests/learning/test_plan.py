# SPDX-License-Identifier: Apache-2.0
"""What ``sauce learn --plan`` says a run will take."""

import re
import shlex
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer

from smollm2 import prompts
from tests.cli.sauce import sauce
from tests.places import ROOT
from tests.smollm2 import smollm2
from vllm_sauce.concepts.scores import SCORES
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.errors import ConfigError
from vllm_sauce.learning.calibration.config import CalibrationConfig
from vllm_sauce.learning.calibration.coordinate_search import (
    STEPS,
    site_rounds,
    stronger,
)
from vllm_sauce.learning.calibration.edit_choices import EditChoices
from vllm_sauce.learning.calibration.setting import Action, SiteSetting
from vllm_sauce.learning.counts import Asked, Counts, count, pictures_alone
from vllm_sauce.learning.harvest.settings import HarvestSettings
from vllm_sauce.learning.plan import (
    as_table,
    matrix_rate,
    notes,
    plan,
    planned,
)
from vllm_sauce.learning.request import LearnRequest
from vllm_sauce.learning.selection.selection_file import RankedLatent, SelectedConcept
from vllm_sauce.learning.training.settings import SAETraining
from vllm_sauce.models.model_size import ModelSize

TINY, PLANS = ROOT / "examples/tiny", ROOT / "examples/plans"
ASKED = Asked(
    questions=300, pictures=48, distinct=48, screening=80, screening_pictures=12
)
FEW = Counts(samples=400, shown=400, pictures=400, concepts=1, searched=ASKED)


@pytest.fixture
def paper(tmp_path):
    """65,536 latents at the tower, 2.56 M tokens: SAUCE's own set-up."""
    return LearnRequest(
        model=str(PLANS / "llava-1.5-7b"),
        sites=("vision",),
        concepts=PLANS / "concepts.yaml",
        out=tmp_path / "bundle",
        training=SAETraining(d_sae=65_536, training_tokens=2_560_000),
    )


def by_stage(request, counts):
    lines = plan(request, counts, ModelSize.read(request.model))
    return {line.stage: line for line in lines}


def test_a_paper_sized_plan_has_the_papers_sizes(paper):
    lines = by_stage(paper, replace(FEW, training=pictures_alone(4500)))
    train = lines["train vision"]
    # W_enc and W_dec in float32.
    assert train.disk == 2 * 1024 * 65_536 * 4
    assert train.operations == 12 * 2_560_000 * 1024 * 65_536
    # Beside weights, gradients and moments the model itself, 7.06 G float16 numbers.
    assert train.memory - 4 * train.disk > 2 * 7.0e9
    harvest = lines["harvest concepts"]
    assert harvest.tokens == 400 * 576
    assert harvest.disk == 400 * 576 * (1024 * 2 + 9)
    # 6.48 G numbers for each of 24 + 576 tokens, twice; the tower adds 3 percent.
    assert harvest.operations == pytest.approx(400 * 600 * 2 * 6.476e9, rel=0.06)
    assert harvest.operations > 400 * 600 * 2 * 6.476e9
    # The 2.56 M rows of the paper are 4,500 pictures.
    assert lines["harvest training pictures"].tokens == 2_592_000
    assert as_table(list(lines.values()), 1e12).row_count == len(lines) + 1


def test_llava_next_with_131k_latents_by_hand(paper):
    wide = replace(paper.training, d_sae=131_072)
    request = replace(paper, model=str(PLANS / "llava-v1.6-mistral-7b"), training=wide)
    lines = by_stage(request, replace(FEW, training=pictures_alone(1000)))
    train = lines["train vision"]
    assert train.disk == 2**30  # 2 x 1024 x 131,072 x 4 bytes: 2^(1 + 10 + 17 + 2)
    assert train.operations == 12 * 2_560_000 * 2**27
    # Four times the weights; the model's 7.57 G numbers in bfloat16.
    assert train.memory > 4 * 2**30 + 2 * 7.5e9
    # Five tiles of 576 a picture, two bytes a number, nine for a row's labels.
    harvest = lines["harvest training pictures"]
    assert harvest.tokens == 1000 * 2880
    assert harvest.disk == 1000 * 2880 * (2048 + 9)
    # Of which a prompt holds 2,928 tokens, with newlines: 24 words, 6.98 G numbers.
    language = 1000 * (24 + 2928) * 2 * 6.979e9
    # 0.289 G in the tower (577 tokens a tile) and 0.021 G in the projector.
    tower = 1000 * 2 * (5 * 577 * 0.2894e9 + 2880 * 0.02097e9)
    assert harvest.operations == pytest.approx(language + tower, rel=1e-3)
    # At a decoder layer a row is a token of the prompt.
    deep = by_stage(replace(request, sites=("decoder.16",)), FEW)
    assert deep["harvest concepts"].tokens == 400 * (24 + 2928)


def test_prompts_without_pictures_have_no_patches(paper):
    text = replace(FEW, shown=0, pictures=0)
    lines = by_stage(replace(paper, sites=("decoder.16",)), text)
    assert lines["harvest concepts"].tokens == 400 * 24


def test_rows_are_stored_as_vllm_is_told(paper):
    wide = replace(paper, engine_args={"max_model_len": 99, "dtype": "float32"})
    assert by_stage(wide, FEW)["harvest concepts"].disk == 400 * 576 * (4096 + 9)


@pytest.mark.parametrize("sites", [("vision",), ("vision", "decoder.16")])
def test_no_search_asks_more_than_planned(paper, sites):
    """The longest search there is: every round finds something better."""
    paper = replace(paper, sites=sites)
    ranked = [
        RankedLatent(
            latent=i,
            scores=dict.fromkeys(SCORES, 1.0),
            mean_acts=(1.0, 0.5),
            firing_rate=(1.0, 0.5),
            max_acts=(1.0, 0.5),
        )
        for i in range(64)
    ]
    rows = [
        ranked[0].model_copy(update={"latent": 99 + at, "scores": {name: 1.0}})
        for at, name in enumerate(("row:others", "row:absence"))
    ]
    latents = SelectedConcept(
        domain="animals", num_samples=(9, 9), latents=ranked, rows=rows
    )
    config = CalibrationConfig()
    sites = dict.fromkeys(paper.sites, latents)
    choices = EditChoices.of("dog", sites, config)
    search = site_rounds(choices.grids, config.passes)
    rising, tried = 0.0, 0
    wanted = next(search)
    with pytest.raises(StopIteration):
        while True:
            tried += len(wanted)
            scores = {}
            for setting in wanted:
                rising += 1.0
                scores[setting] = rising
            wanted = search.send(scores)
    best = tuple(
        SiteSetting(
            site=site, ranking="file", k=64, gate=0.0, action=Action.parse("scale 0")
        )
        for site in sites
    )
    whole = config.finalists + len(list(choices.smaller(best)))
    line = by_stage(paper, FEW)["calibrate"]
    # A common setting is sought so, too, and then every concept has its own.
    asked = 2 * tried * ASKED.screening
    # Twice as many are asked half of them first; the common ones' best, everything.
    asked += (1 + whole + config.finalists) * ASKED.questions
    asked += (1 + config.finalists) * ASKED.questions
    weak = tuple(replace(one, k=4, gate=0.99) for one in best)
    asked += STEPS * len(stronger(weak, choices.grids)) * ASKED.questions
    # At most, a site is left alone at last and then edited by its rows: not here.
    assert asked <= line.passes <= (1.1 if len(sites) == 1 else 1.2) * asked


def test_one_masks_questions_share_their_picture(paper):
    """Time is of pictures, prompts of questions: the engine keeps a prefix's blocks."""
    asked = replace(ASKED, questions=600, screening=160)
    few, many = (
        by_stage(paper, replace(FEW, searched=one))["calibrate"]
        for one in (ASKED, asked)
    )
    assert many.passes == 2 * few.passes
    assert many.operations < 1.5 * few.operations


def test_more_work_takes_more(paper):
    few, many = (
        sum(
            line.operations
            for line in plan(
                paper,
                replace(FEW, samples=n, shown=n, pictures=n),
                ModelSize.read(paper.model),
            )
        )
        for n in (100, 200)
    )
    assert few < many


def test_the_rate_is_this_machines():
    rate = matrix_rate("cpu", 0.05)
    assert 1e8 < rate < 1e14
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no device 'cuda' here"):
            matrix_rate("cuda")


def test_the_plan_counts_what_the_file_leads_to(paper):
    found = count(paper)
    assert found.concepts == 2
    assert found.samples == found.shown == found.pictures > 0
    assert found.searched.pictures <= 2 * (24 + 24)
    assert found.searched.questions > found.searched.pictures > found.searched.distinct
    # One question of each kind at least, a quarter of them all at best.
    assert found.searched.questions / 4 < found.searched.screening
    assert found.searched.screening < found.searched.questions
    tiny = replace(
        paper,
        model=str(TINY / "model"),
        concepts=TINY / "concepts.yaml",
        training=SAETraining(),
    )
    assert planned(tiny).row_count == 6
    assert planned(replace(tiny, edits="latents")).row_count == 5
    assert planned(replace(tiny, edits="rows")).row_count == 5


def test_what_must_be_known_is_said(paper):
    size = ModelSize.read(PLANS / "llava-v1.6-mistral-7b")
    few = replace(FEW, training=pictures_alone(100))
    told = " / ".join(notes(paper, few, size))
    assert "all tiles, 2,880 patches" in told
    # 2,560,000 rows out of 100 x 2,880.
    assert "shown 8.9 times" in told
    size = ModelSize.read(paper.model)
    whole = replace(FEW, training=pictures_alone(4500))
    assert notes(paper, whole, size) == []
    (told,) = notes(paper, whole, replace(size, architecture="MolmoForCausalLM"))
    assert "a plan only: the vision site of MolmoForCausalLM is not proven" in told


def test_texts_to_train_on_are_counted_as_the_model_reads_them(paper, tmp_path):
    """With what it writes after each."""
    texts = tmp_path / "texts.txt"
    texts.write_text("is there a dog ?\nhello\n")
    tiny = replace(
        paper,
        model=str(TINY / "model"),
        sites=("decoder.1",),
        concepts=TINY / "concepts.yaml",
        train_texts=texts,
        harvest=HarvestSettings(max_tokens=5),
    )
    found = count(tiny).training
    assert found is not None
    assert (found.samples, found.shown, found.written) == (2, 0, 10)
    # Each with the chat's own USER: and ASSISTANT:.
    assert found.words > 2 * 2
    lines = by_stage(tiny, count(tiny))
    rows = lines["harvest training texts"].tokens
    assert rows == found.words + found.written


def commands():
    """The commands that docs/learn.md shows with their tables."""
    page = (ROOT / "docs/learn.md").read_text()
    section = page.split("## What a paper-size run takes")[1].split("\n## ")[0]
    text = section.replace("\\\n", " ")
    return [shlex.split(c) for c in re.findall(r"^    sauce (learn .*)$", text, re.M)]


def test_the_documented_plans_are_printed(monkeypatch, tmp_path):
    """Without weights, and without a trace; the numbers are those of the page."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    page = (ROOT / "docs/learn.md").read_text()
    found = commands()
    assert len(found) == 2
    for command in found:
        command[command.index("--out") + 1] = str(tmp_path / "bundle")
        done = sauce(*command)
        assert done.exit_code == 0, done.output
        rows = [line for line in done.output.splitlines() if line.startswith("│")]
        assert len(rows) == 7
        for row in rows:
            # All but the time, which is of the machine.
            for cell in row.strip("│").split("│")[:-1]:
                assert cell.strip() in page
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--plan", "--plan-pictures", "0"), "at least 1, got 0"),
        (("--model", "nowhere", "--plan"), "cannot read nowhere/config.json"),
        (("--model", str(TINY / "pictures"), "--plan"), "cannot read"),
        (("--plan-pictures", "5"), "add --plan"),
        (
            ("--plan", "--plan-pictures=5", "--train-texts=t", "--edits=rows"),
            "stands for pictures, not for --train-texts",
        ),
    ],
)
def test_a_plan_of_nothing_is_refused(paper, options, words):
    command = [
        *("learn", "--model", paper.model, "--site", "vision"),
        *("--concepts", str(paper.concepts), "--out", str(paper.out), *options),
    ]
    done = sauce(*command)
    assert done.exit_code == 2
    assert words in done.output
    assert not paper.out.exists()


def test_a_layer_that_is_not_there_is_refused_before_anything_runs(paper):
    has = "no site 'decoder.32': it has decoder.0 to decoder.31, and vision"
    with pytest.raises(ConfigError, match=has):
        plan(replace(paper, sites=("decoder.32",)), FEW, ModelSize.read(paper.model))
    model = ModelSize.read(smollm2())
    with pytest.raises(ConfigError, match="decoder.29, and no vision tower"):
        plan(replace(paper, sites=("vision",)), FEW, model)


def test_prompts_of_text_are_counted_as_the_model_reads_them(tmp_path):
    """Most of "dog 17" is SmolLM2's template."""
    for name in ("dog", "other"):
        lines = [f"{name} {number}" for number in range(10, 50)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    (tmp_path / "concepts.yaml").write_text(
        "version: 1\nconcepts: {dog: {positive: {text: dog.txt}, "
        "negative: {text: other.txt}}}\n"
    )
    request = LearnRequest(
        model=str(smollm2()),
        sites=("decoder.12",),
        concepts=tmp_path / "concepts.yaml",
        out=tmp_path / "bundle",
        edits="rows",
        harvest=HarvestSettings(max_tokens=5),
    )
    counts = count(request)
    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    shown = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": sample.prompt}], add_generation_prompt=True
        )["input_ids"]
        for sample in ConceptFile.read(request.concepts).samples("selection")
    ]
    assert counts.words == sum(map(len, shown)) > 30 * counts.samples
    assert counts.written == 5 * counts.samples
    lines = by_stage(request, counts)
    assert lines["harvest concepts"].tokens == counts.words + counts.written


def test_the_language_models_configuration_is_the_guides(tmp_path, monkeypatch):
    """docs/learn-text.md runs it: rows of words at two layers, and nothing trained."""
    monkeypatch.setenv("COLUMNS", "120")
    prompts.write(tmp_path)
    config = ROOT / "examples/smollm2/learn.yaml"
    given = ("--model", smollm2(), "--concepts", tmp_path / "concepts.yaml")
    out = ("--out", tmp_path / "bundle", "--plan")
    done = sauce("learn", "--config", config, *given, *out)
    assert done.exit_code == 0, done.output
    assert "fit decoder.12" in done.output and "fit decoder.24" in done.output
    assert "train" not in done.output
