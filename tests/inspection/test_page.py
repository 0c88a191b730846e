# SPDX-License-Identifier: Apache-2.0
"""The report's page, in a real browser."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inspection.browser import ask_page, needs_browser
from tests.tiny_world import draw, sample_of
from tiny.exam import LATENTS_FOLDER, MODEL_FOLDER
from vllm_sauce.bundle import Bundle
from vllm_sauce.concepts import Catalogue
from vllm_sauce.data.schema import Questions
from vllm_sauce.errors import ConfigError
from vllm_sauce.inspection.heat_maps import (
    LEVELS,
    heat_levels,
    heat_uri,
    picture_uris,
    scale_colours,
)
from vllm_sauce.inspection.inspection import Inspection, inspect_bundle
from vllm_sauce.inspection.page import render, write_page
from vllm_sauce.inspection.questions import Wording
from vllm_sauce.inspection.settings import InspectSettings
from vllm_sauce.models.loaded_model import LoadedModel

NASTY = '</style><script>bad()</script><img src=x onerror="bad()">\'&{{7*7}}'
NASTY_DOMAIN = '"><b id=bold>things'
NAMES = {"clock": NASTY, "cat": "cat", "tree": "tree", "red": "red"}


@pytest.fixture(scope="module")
def inspection() -> Inspection:
    """A report on four concepts, one of whose names is an attack."""
    shipped = Bundle.load(LATENTS_FOLDER)
    concepts = [
        replace(
            shipped.catalogue[old],
            name=new,
            domain=NASTY_DOMAIN if old == "clock" else shipped.catalogue[old].domain,
            provenance={"by": NASTY},
        )
        for old, new in NAMES.items()
    ]
    saes = {site: item.weights for site, item in shipped.sites.items()}
    bundle = Bundle.build(shipped.fingerprint, saes, Catalogue(concepts))
    samples = []
    for i, picture in enumerate(draw(["clock", "cat", "tree"] * 3)):
        sample = sample_of(picture, f"{NASTY}{i}")
        named = tuple(NAMES.get(name, name) for name in sample.concepts)
        samples.append(replace(sample, concepts=named))
    wording = Wording(
        {NASTY_DOMAIN: Questions(name=["What object is in the picture?"])},
        answers={NASTY: ("clock",)},
    )
    settings = InspectSettings(
        latents=3, top=3, probes=2, retained=2, strengths=(0, 1, 2)
    )
    loaded = LoadedModel.load(MODEL_FOLDER, "cpu")
    return inspect_bundle(
        bundle,
        loaded,
        samples,
        (),
        settings,
        wording=wording,
        bundle_name=NASTY,
        model_name=NASTY,
    )


@pytest.fixture(scope="module")
def page(inspection: Inspection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert write_page(inspection, path) == path.stat().st_size
    return path


ABOUT = """
  const search = document.getElementById("search");
  const shown = () => [...document.querySelectorAll("section[data-name]")]
      .filter(s => !s.hidden).map(s => s.querySelector("h2").textContent);
  const all = shown();
  const type = text => {
    search.value = text;
    search.dispatchEvent(new Event("input"));
  };
  type("ca");
  const ca = shown(), told = document.getElementById("found").textContent;
  const rows = [...document.querySelectorAll("#scores tbody tr")]
      .filter(r => !r.hidden).length;
  type("onerror"); const nasty = shown(); type("zzz"); const none = shown(); type("");
  const sort = [...document.querySelectorAll("#scores th button")]
      .find(b => b.textContent === "HM");
  const column = () => [...document.querySelectorAll("#scores tbody tr")]
      .map(r => Number(r.children[6].dataset.value));
  sort.click(); const down = column(); sort.click(); const up = column();
  const blank = [...document.querySelectorAll(".pic")]
      .filter(p => !getComputedStyle(p).backgroundImage.startsWith("url")).length;
  const broken = [...document.images]
      .filter(i => !(i.complete && i.naturalWidth)).length;
  const anchors = [...document.querySelectorAll("a[href^='#']")]
      .filter(a => !document.getElementById(a.getAttribute("href").slice(1))).length;
  const unnamed = [...document.querySelectorAll("[role=img]")]
      .filter(e => !e.getAttribute("aria-label")).length;
  return {all, ca, told, rows, nasty, none, down, up, blank, broken, anchors, unnamed,
      again: shown().length, scripts: document.scripts.length,
      bold: document.getElementById("bold") !== null,
      tiles: document.querySelectorAll(".tiles figure").length,
      outside: performance.getEntriesByType("resource")
          .filter(r => !r.name.startsWith("data:")).length,
      scroll: document.documentElement.scrollWidth, width: innerWidth};
"""


@needs_browser
@pytest.mark.parametrize("width", [1400, 500])
def test_page_in_a_browser(page, tmp_path, width, inspection):
    """No console message, no broken picture, no request; search and sort work."""
    told, console = ask_page(page, ABOUT, tmp_path, width)
    assert console == []
    assert sorted(told["all"]) == sorted(NAMES.values())
    assert told["ca"] == ["cat"] and told["told"] == "1 of 4 concepts"
    assert told["rows"] == 1 and told["nasty"] == [NASTY] and told["none"] == []
    assert told["again"] == 4
    assert told["down"] == sorted(told["down"], reverse=True)
    assert told["up"] == sorted(told["down"]) and len(set(told["up"])) > 1
    assert (told["blank"], told["broken"], told["anchors"], told["unnamed"]) == (0,) * 4
    # Ours and the test's: a concept's name made none.
    assert told["scripts"] == 2 and not told["bold"]
    assert told["outside"] == 0
    maps = [v for view in inspection.concepts for v in view.latents]
    assert told["tiles"] == sum(len(view.maps) for view in maps) > 10
    assert told["scroll"] <= told["width"], "the page is wider than the window"


@needs_browser
def test_the_browser_tells_of_errors(tmp_path):
    """What the tests above rely on: a script that fails is seen."""
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><p>x</p><script>nowhere()</script>")
    answer, console = ask_page(page, "return document.images.length", tmp_path)
    assert answer == 0 and len(console) == 1 and "nowhere" in console[0]


def test_page_needs_no_other_file(page):
    text = page.read_text()
    assert not re.search(r"https?://(?!www\.w3\.org)", text)
    assert "<script>bad()" not in text and "{{" not in text.replace("{{7*7}}", "")
    assert page.stat().st_size < 1_000_000


def test_one_concept_has_a_page_too(inspection):
    one = replace(inspection, concepts=inspection.concepts[:1])
    text = render(one)
    assert 'id="search"' not in text and text.count('<section class="concept"') == 1
    assert "Concept “" in text


def test_the_tokens_of_an_edit_are_named(inspection):
    """At decoder sites; the vision tower has image tokens alone."""
    text, told = render(inspection), 0
    for view in inspection.concepts:
        for site, edit in view.concept.edits.items():
            named = f"{len(edit.latents)} at {site}, of tokens: "
            assert (named + ", ".join(edit.tokens) in text) == (site != "vision")
            told += site != "vision"
    assert told


def test_a_page_is_written_whole_or_not_at_all(inspection, tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        write_page(inspection, target)
    assert list(tmp_path.iterdir()) == [target]
    with pytest.raises(ConfigError, match="cannot write"):
        write_page(inspection, tmp_path / "nowhere" / "report.html")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_leaves_the_old_page(inspection, tmp_path):
    (tmp_path / "report.html").write_text("the old one")
    (tmp_path / ".report.html.new").symlink_to("/dev/full")
    with pytest.raises(ConfigError, match="No space left"):
        write_page(inspection, tmp_path / "report.html")
    (left,) = tmp_path.iterdir()
    assert left.read_text() == "the old one"


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_heat_maps_keep_place_and_strength():
    grid = torch.zeros(3, 3)
    grid[0, 2], grid[1, 0], grid[2, 1] = 10.0, 5.0, 0.001
    levels = heat_levels(grid, 10.0)
    assert levels[0, 2] == LEVELS - 1 and levels[2, 1] == 1 and levels[0, 0] == 0
    assert 1 < levels[1, 0] < LEVELS - 1
    image = np.asarray(decoded(heat_uri(grid, 10.0)).convert("RGBA"))
    assert image.shape == (3, 3, 4)
    colours = scale_colours()
    assert tuple(image[0, 2]) == colours[-1] and image[0, 0, 3] == 0
    assert tuple(image[1, 0]) == colours[levels[1, 0]]
    assert not heat_levels(torch.zeros(2, 2), 0.0).any()


def test_pictures_shrink_until_they_fit():
    generator = torch.Generator().manual_seed(0)
    noise = {
        i: torch.randint(0, 256, (336, 300, 3), generator=generator, dtype=torch.uint8)
        for i in range(4)
    }
    large, small = picture_uris(noise), picture_uris(noise, most_bytes=40_000)
    assert max(decoded(large[0]).size) == 224
    assert max(decoded(small[0]).size) < 224
    assert sum(len(uri) for uri in small.values()) < 60_000
    tiny = {0: noise[0][:56, :56]}
    kept = np.asarray(decoded(picture_uris(tiny)[0]))
    assert np.array_equal(kept, tiny[0].numpy())
