# SPDX-License-Identifier: Apache-2.0
"""``sauce fit`` on sauce-tiny: real pictures, a harvest on disk, what select makes."""

import pytest
import torch

from tests.activations.harvests import harvest_pictures
from tests.cli.sauce import sauce
from tests.places import TINY
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.bundle import Bundle
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.learning.rows.fit_rows import halves_of
from vllm_sauce.learning.rows.settings import BASELINES
from vllm_sauce.learning.selection.latent_statistics import sample_groups
from vllm_sauce.learning.selection.selection_file import SelectionFile
from vllm_sauce.sae import without_rows


@pytest.fixture(scope="module")
def file():
    return ConceptFile.read(TINY / "concepts.yaml")


@pytest.fixture(scope="module")
def harvested(tmp_path_factory, file):
    return harvest_pictures(tmp_path_factory.mktemp("harvest"), file)


def run(command, harvested, *more):
    given = ("--harvest", harvested, "--concepts", TINY / "concepts.yaml")
    return sauce(command, *given, "--site", "vision", *more)


@pytest.fixture(scope="module")
def fitted(harvested, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "rows"
    done = run("fit", harvested, "--sae", TINY / "latents", "--out", out)
    assert done.exit_code == 0, done.output
    return out


def test_each_concept_has_rows_beside_the_latents(fitted, file):
    sae = Bundle.load(fitted).sites["vision"].weights
    shipped = Bundle.load(TINY / "latents").sites["vision"].weights
    assert sae.d_sae == 2048 + len(sae.rows)
    for name, tensor in without_rows(sae).tensors().items():
        torch.testing.assert_close(tensor, shipped.tensors()[name], rtol=0, atol=0)
    kinds: dict[str, set[str]] = {}
    for row in sae.rows:
        kinds.setdefault(row.kind, set()).add(row.concept)
    assert kinds["others"] == set(file.concepts)
    # Every background has a colour: there is no picture without one.
    domains = {file.concepts[name].domain for name in kinds["absence"]}
    assert domains == {"objects", "sports", "emotions"}


def test_few_pictures_are_warned_of(harvested, tmp_path, caplog):
    done = run("fit", harvested, "--out", tmp_path / "rows")
    assert done.exit_code == 0
    assert "fewer than 30 samples" in caplog.text
    sae = Bundle.load(tmp_path / "rows").sites["vision"].weights
    assert sae.d_sae == len(sae.rows) > 60


def test_rows_read_their_concept_in_pictures_of_another_split(fitted, file, harvested):
    """The largest of a picture's patches tells it, for most concepts nearly always."""
    store = ActivationStore.open(harvested, "vision")
    concepts = tuple(file.concepts.values())
    groups = sample_groups(store.samples(), concepts, "scoring", "vision")
    sae = Bundle.load(fitted).sites["vision"].weights
    sample = store.labels()[0].long()
    z = sae.encode(store.rows(torch.arange(len(store))))[:, 2048:]
    # A picture's patches are stored once, under the first of its samples.
    stored = torch.zeros(len(groups), dtype=torch.bool)
    stored[sample] = True
    best = torch.zeros(len(groups), z.shape[1])
    best.scatter_reduce_(0, sample[:, None].expand_as(z), z, "amax")
    places = {name: number for number, name in enumerate(file.concepts)}
    areas = []
    for number, row in enumerate(sae.rows):
        column = 2 * places[row.concept]
        having = best[groups[:, column] & stored, number]
        lacking = best[groups[:, column + 1] & stored, number]
        areas.append(float((having[:, None] > lacking).float().mean()))
    assert sum(areas) / len(areas) > 0.9


def test_fewer_patches_are_misread_than_by_a_discriminant(harvested, file, tmp_path):
    """Of pictures of another split, with a gate that finds 95 % of a background's.

    Few pictures of each: of things in front both read as well here.
    """
    store = ActivationStore.open(harvested, "vision")
    concepts = tuple(file.concepts.values())
    groups = sample_groups(store.samples(), concepts, "scoring", "vision")
    of_rows = groups[store.labels()[0].long()]
    x = store.rows(torch.arange(len(store)))
    misread = []
    for number, more in enumerate(((), ("--baseline", "leace"))):
        out = tmp_path / str(number)
        assert run("fit", harvested, *more, "--out", out).exit_code == 0
        sae = Bundle.load(out).sites["vision"].weights
        z = x @ sae.W_enc.float() + sae.b_enc.float()
        shares = []
        for place, concept in enumerate(concepts):
            if concept.domain in ("colours", "materials"):
                gate = z[of_rows[:, 2 * place], place].quantile(0.05)
                lacking = z[of_rows[:, 2 * place + 1], place]
                shares.append(float((lacking > gate).float().mean()))
        misread.append(sum(shares) / len(shares))
    # On 74 pictures of each: a fifth of what the discriminant misreads.
    assert misread[0] < 0.7 * misread[1]


def known(latent):
    return {name: score or 0.0 for name, score in latent.scores.items()}


def test_selection_keeps_a_concepts_rows_apart(fitted, harvested, tmp_path):
    out = tmp_path / "selection.json"
    done = run("select", harvested, "--sae", fitted, "--k", "8", "--out", out)
    assert done.exit_code == 0, done.output
    plain = tmp_path / "plain.json"
    done = run(
        "select", harvested, "--sae", TINY / "latents", "--k", "8", "--out", plain
    )
    assert done.exit_code == 0, done.output
    found, before = SelectionFile.read(out), SelectionFile.read(plain)
    sae = Bundle.load(fitted).sites["vision"].weights
    for name, concept in found.concepts.items():
        for now, then in zip(
            concept.latents, before.concepts[name].latents, strict=True
        ):
            assert now.latent == then.latent
            assert known(now) == pytest.approx(known(then), rel=1e-4)
        rankings = [next(iter(row.scores)) for row in concept.rows]
        assert rankings == [f"row:{r.kind}" for r in sae.rows if r.concept == name]
        for row in concept.rows:
            assert sae.rows[row.latent - 2048].concept == name
            assert row.mean_acts[0] > row.mean_acts[1] >= 0


@pytest.mark.parametrize("kind", BASELINES)
def test_a_simple_edit_is_a_bundle_that_no_server_offers_unasked(
    harvested, file, tmp_path, kind
):
    out = tmp_path / kind
    done = run("fit", harvested, "--baseline", kind, "--out", out)
    assert done.exit_code == 0, done.output
    bundle = Bundle.load(out)
    assert bundle.catalogue.weak() == bundle.catalogue.names()
    assert set(bundle.catalogue.names()) == set(file.concepts)
    sae = bundle.sites["vision"].weights
    for concept in bundle.catalogue.values():
        rows = [sae.rows[latent] for latent in concept.edits["vision"].latents]
        assert [(row.kind, row.concept) for row in rows] == [(kind, concept.name)] * 2


def test_a_picture_is_in_one_half_and_a_text_in_another_or_the_same():
    """Whatever is asked about it: what is tried on one half was not fitted on it."""
    asked = [
        {"key": f"{n}~{q}", "picture": f"{n}"} for n in range(40) for q in range(3)
    ]
    half = halves_of(asked).view(40, 3)
    assert (half == half[:, :1]).all()
    assert 10 < int(half[:, 0].sum()) < 30
    texts = [{"key": f"{n}", "picture": None} for n in range(40)]
    assert torch.equal(halves_of(texts), half[:, 0])


def test_a_baseline_stands_alone(harvested, tmp_path):
    more = ("--baseline", "leace", "--sae", TINY / "latents", "--out", tmp_path / "out")
    done = run("fit", harvested, *more)
    assert done.exit_code == 2 and "a baseline stands alone" in done.output


def test_a_folder_that_is_there_is_not_replaced_unasked(fitted, harvested):
    done = run("fit", harvested, "--out", fitted)
    assert done.exit_code == 2
    assert "--overwrite" in done.output
