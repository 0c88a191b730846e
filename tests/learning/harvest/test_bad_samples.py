# SPDX-License-Identifier: Apache-2.0
"""What cannot be shown fails alone, wherever it is met; text is cut at \\n alone."""

import json
import logging
import logging.config
import os
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from vllm.multimodal.media import ImageMediaIO

from tests.activations.harvests import SITE, write_harvest
from tests.data.picture_kinds import claiming, colours, readable, refused, saved
from tests.learning.importing.layouts import MODEL
from vllm_sauce.activations.shards import SiteFormat, sample_lines
from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.data.located_yaml import load_yaml
from vllm_sauce.data.sample_sources import find_samples
from vllm_sauce.data.samples import PictureFile, distinct, open_picture
from vllm_sauce.errors import ActivationsError, ConfigError, warn
from vllm_sauce.learning.harvest import engine as harvesting
from vllm_sauce.learning.harvest.folder import FAILURES_FILE
from vllm_sauce.learning.harvest.settings import HarvestRequest
from vllm_sauce.learning.importing.site_samples import read_pictures, read_texts
from vllm_sauce.learning.training import train as harvest_training
from vllm_sauce.learning.training.settings import (
    FidelitySettings,
    HarvestTraining,
    SAETraining,
)

HALF = '{"q": "cut \\ud83d", "f": "a.png", "c": ["dog"]}\n'
BOMB = claiming(20_000, 20_000)


def folder_of(path, count=3):
    """Pictures that differ, and what a Mac leaves beside them."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = colours()
        image.putpixel((0, 0), (number, 9, 9))
        (path / f"{number}.png").write_bytes(saved(image, "PNG"))
    (path / "._0.png").write_bytes(b"\0\5\x16\7")
    (path / "x.png").mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize("kind", readable())
def test_a_samples_picture_is_what_the_server_sees(tmp_path, kind):
    file = tmp_path / "a.png"
    file.write_bytes(readable()[kind])
    wanted = np.asarray(ImageMediaIO().load_file(file).media)
    assert np.array_equal(np.asarray(open_picture(PictureFile(file))), wanted)
    (imported,) = read_pictures(tmp_path)
    assert np.array_equal(np.asarray(imported), wanted)


@pytest.fixture(params=[False, True], ids=["plain", "logging is configured"])
def warned(request, caplog, monkeypatch):
    """Catch what is warned of, also after others have configured logging."""
    if request.param:
        warn("as in any earlier test")
        loggers = logging.root.manager.loggerDict.values()
        for logger in [x for x in loggers if isinstance(x, logging.Logger)]:
            monkeypatch.setattr(logger, "disabled", logger.disabled)
        # What vLLM does with VLLM_LOGGING_CONFIG_PATH, and uvicorn with --log-config.
        logging.config.dictConfig({"version": 1, "loggers": {"vllm": {}}})
        assert logging.getLogger("vllm_sauce").disabled
        caplog.clear()
    return caplog


def test_import_passes_over_what_it_cannot_read(tmp_path, warned):
    folder_of(tmp_path, 20)
    assert len(read_pictures(tmp_path)) == 16
    assert not warned.records
    for number, content in enumerate(refused().values()):
        (tmp_path / f"0-{number}.png").write_bytes(content)
    assert len(read_pictures(tmp_path)) == 16
    assert len(warned.records) == len(refused())
    assert "0-0.png is no picture" in warned.records[0].message
    only = tmp_path / "only"
    only.mkdir()
    (only / "big.png").write_bytes(BOMB)
    with pytest.raises(ConfigError, match="no pictures that can be read"):
        read_pictures(only)


def test_files_of_texts_are_cut_at_line_ends(tmp_path):
    file = tmp_path / "t.txt"
    file.write_bytes("\ufeffone\u2028two\r\n\x0c\r\nwhat\x85x\n".encode())
    assert read_texts(file) == ["one\u2028two", "what\x85x"]
    found = [(s.key, s.prompt) for s in find_samples(texts=file)]
    assert found == [("t.txt#0", "one\u2028two"), ("t.txt#2", "what\x85x")]


def test_a_row_with_half_a_character_keeps_its_place(tmp_path):
    table = tmp_path / "t.jsonl"
    rows = [{"q": "a\u2028b"}, {"q": "a"}]
    text = json.dumps(rows[0], ensure_ascii=False) + "\r\n" + HALF * 2
    table.write_bytes(b"\xef\xbb\xbf" + (text + json.dumps(rows[1])).encode())
    samples, repeated = distinct(find_samples(table=table, prompt_column="q"))
    assert not repeated
    assert [s.prompt for s in samples] == ["a\u2028b", "", "", "a"]
    assert [bool(s.problem) for s in samples] == [False, True, True, False]
    assert all(s.key == f"{table}#{n}" for n, s in enumerate(samples))


def test_prompts_of_the_command_line_are_text():
    with pytest.raises(ConfigError, match="--prompt must be UTF-8"):
        find_samples(pictures=MODEL, prompts=("\udcff",))


def test_a_file_whose_name_is_no_utf8_can_be_shown(tmp_path):
    folder_of(tmp_path)
    content = saved(colours().rotate(180), "PNG")
    with open(os.fsencode(tmp_path) + b"/caf\xe9.png", "wb") as file:
        file.write(content)
    samples, _ = distinct(find_samples(pictures=tmp_path, prompts=("?",)))
    assert len(samples) == 4 and not any(s.problem for s in samples)
    json.dumps([s.to_json() for s in samples], ensure_ascii=False).encode()


def test_a_picture_that_cannot_be_read_keeps_its_place(tmp_path, monkeypatch):
    folder = folder_of(tmp_path)
    real = type(folder).read_bytes

    def read(path):
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(type(folder), "read_bytes", read)
    samples, _ = distinct(find_samples(pictures=folder))
    assert ["Permission denied" in s.problem for s in samples] == [False, True, False]


class Refusing:
    """A vLLM that takes a sample or raises what is asked for."""

    def __init__(self, errors):
        self.errors, self.llm_engine = errors, self
        self.asked, self.waiting = [], []

    def enqueue_chat(self, messages, params, use_tqdm):
        words = messages[0][0]["content"][-1]["text"]
        self.asked.append(words)
        if words in self.errors:
            raise self.errors[words]
        self.waiting.append(len(self.asked))
        return [f"{len(self.asked)}-abc"]

    def step(self):
        answer = SimpleNamespace(finish_reason="stop", token_ids=[1])
        done, self.waiting = self.waiting, []
        return [
            SimpleNamespace(
                request_id=str(n), finished=True, outputs=[answer], prompt_token_ids=[1]
            )
            for n in done
        ]

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def collective_rpc(self, name, args=()): ...

    def reset_encoder_cache(self): ...

    def abort_request(self, names): ...


ERRORS = {
    "type": TypeError("unexpected None"),
    "assert": AssertionError(),
    "overflow": OverflowError("too large"),
    "value": ValueError("too long"),
    "memory": MemoryError(),
}


def harvest_engine(llm, sites):
    formats = {site: SiteFormat(d_model=4, dtype="float32") for site in sites}
    return harvesting.HarvestEngine(llm, formats)


def requested(samples, out):
    return HarvestRequest(model=str(MODEL), sites=("vision",), out=out), samples


def test_whatever_vllm_raises_for_a_sample_fails_it_alone(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("\n".join(["one", *ERRORS, "two"]))
    llm = Refusing(ERRORS)
    request = requested(tuple(find_samples(texts=file)), tmp_path / "h")
    report = harvesting.harvest(*request, engine=harvest_engine(llm, ("vision",)))
    assert llm.asked == ["one", *ERRORS, "two"]
    assert list(report.failed) == [f"t.txt#{n}" for n in range(1, 6)]
    for reason, error in zip(report.failed.values(), ERRORS.values(), strict=True):
        assert reason.startswith(type(error).__name__)
    lines = (tmp_path / "h" / FAILURES_FILE).read_text().splitlines()
    assert len(lines) == len(ERRORS)


def test_a_harvest_of_which_all_fails_says_why(tmp_path):
    """As of a model without a chat template: nothing could be learnt from it."""
    file = tmp_path / "t.txt"
    file.write_text("\n".join(ERRORS))
    request = requested(tuple(find_samples(texts=file)), tmp_path / "h")
    engine = harvest_engine(Refusing(ERRORS), ("vision",))
    first = type(next(iter(ERRORS.values()))).__name__
    with pytest.raises(ActivationsError, match=f"all {len(ERRORS)} failed.*: {first}"):
        harvesting.harvest(*request, engine=engine)


def test_a_dead_engine_is_no_samples_fault(tmp_path):
    from vllm.v1.engine.exceptions import EngineDeadError

    file = tmp_path / "t.txt"
    file.write_text("one\ntwo\n")
    llm = Refusing({"two": EngineDeadError("gone")})
    request = requested(tuple(find_samples(texts=file)), tmp_path / "h")
    with pytest.raises(EngineDeadError):
        harvesting.harvest(*request, engine=harvest_engine(llm, ("vision",)))


def test_bad_samples_are_told_and_the_harvest_goes_on(tmp_path):
    """The bomb, the damaged, the half character; then again on resume."""
    (tmp_path / "a.png").write_bytes(saved(colours(), "PNG"))
    for name, content in refused().items():
        (tmp_path / f"{name}.png").write_bytes(content)
    names = ["a", *refused()]
    rows = [json.dumps({"q": n, "f": f"{n}.png", "c": []}) + "\n" for n in names]
    table = tmp_path / "t.jsonl"
    table.write_text(rows[0] + HALF + "".join(rows[1:]))
    for _ in range(2):
        samples, _ = distinct(
            find_samples(table=table, image_column="f", prompt_column="q")
        )
        request = requested(tuple(samples), tmp_path / "h")
        llm = Refusing({})
        report = harvesting.harvest(*request, engine=harvest_engine(llm, ("vision",)))
        assert llm.asked == ["a"]
        assert len(report.failed) == 1 + len(refused())
        assert "half of one" in report.failed[f"{table}#1"]
        lines = [json.loads(x) for x in (tmp_path / "h/failures.jsonl").open()]
        assert {x["key"]: x["reason"] for x in lines} == report.failed
    assert len(list(sample_lines(tmp_path / "h"))) == 2 + len(refused())


CONCEPTS = (
    "version: 1\nminimum: 1\npictures: {jsonl: t.jsonl, image: f, prompt: q, "
    "concepts: c}\nconcepts: {dog: {}}\n"
)


def concept_table(path, extra=""):
    folder_of(path / "p", 24)
    rows = [
        {"f": f"p/{n}.png", "q": f"a\u2028b {n}\x85", "c": ["dog"] * (n % 2)}
        for n in range(24)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (path / "t.jsonl").write_bytes(("\ufeff" + text + extra).encode())
    (path / "concepts.yaml").write_text(CONCEPTS)
    return path / "concepts.yaml"


def test_concepts_leave_out_what_cannot_be_shown(tmp_path, warned):
    file = concept_table(tmp_path)
    whole = ConceptFile.read(file)
    assert not whole.failed and not warned.records
    assert len(whole.examples) == 24
    assert whole.examples[3].prompts == ("a\u2028b 3\x85",)
    (tmp_path / "a.png").write_bytes(saved(colours(), "PNG"))
    for name, content in refused().items():
        (tmp_path / f"p/{name}.png").write_bytes(content)
    bad = [
        json.dumps({"f": f"p/{name}.png", "q": "?", "c": ["dog"]}) for name in refused()
    ]
    read = ConceptFile.read(concept_table(tmp_path, HALF + "\n".join(bad)))
    # Nothing else has changed: no split, no label, no key.
    assert (read.examples, read.concepts) == (whole.examples, whole.concepts)
    assert len(read.failed) == 1 + len(refused())
    assert "t.jsonl#24" in read.failed
    (record,) = warned.records
    assert record.levelno == logging.WARNING
    assert f"{1 + len(refused())} examples cannot be shown" in record.message
    samples = find_samples(concepts=file, split="scoring")
    assert [s.key for s in samples if s.problem] == list(read.failed)
    kept = [s.key for s in samples if not s.problem]
    assert kept == [s.key for s in whole.samples("scoring")]


def test_a_tables_folder_holds_more_than_tables(tmp_path):
    (tmp_path / "d").mkdir()
    raw = pa.StringArray.from_buffers(3, *pa.array([b"a", b"\xff", b"c"]).buffers()[1:])
    named = pa.array(["dog", None, "cat"]).fill_null("cat").dictionary_encode()
    pq.write_table(pa.table({"q": raw, "c": named}), tmp_path / "d/t.parquet")
    (tmp_path / "d/._t.parquet").write_bytes(b"\0\5\x16\7")
    (tmp_path / "d/x.parquet").mkdir()
    file = tmp_path / "concepts.yaml"
    file.write_text(
        "version: 1\nminimum: 1\nsplits: {selection: 1, calibration: 0, scoring: 0}\n"
        "pictures: {parquet: d, prompt: q, concepts: c}\nconcepts: {dog: , cat: }\n"
    )
    read = ConceptFile.read(file)
    assert [e.prompts for e in read.concepts["dog"].positive] == [("a",)]
    assert list(read.failed) == ["d/t.parquet#1"]
    assert "not UTF-8" in read.failed["d/t.parquet#1"]


def test_a_missing_picture_is_a_mistake_of_the_table(tmp_path):
    table = pa.table({"i": ["gone.png", "a.png"], "c": [["dog"], []]})
    pq.write_table(table, tmp_path / "t.parquet")
    (tmp_path / "a.png").write_bytes(saved(colours(), "PNG"))
    text = CONCEPTS.replace(
        "jsonl: t.jsonl, image: f, prompt: q", "parquet: t.parquet, image: i"
    )
    (tmp_path / "concepts.yaml").write_text(text)
    with pytest.raises(ActivationsError, match=r"line 3.*No such file"):
        ConceptFile.read(tmp_path / "concepts.yaml")


@pytest.mark.parametrize("text", ['a: ["x \\ud83d"]', 'a: 1\n"\\ude00": 2'])
def test_half_a_character_in_yaml_is_named(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"c.yaml, line \d: .*half of one"):
        load_yaml(file)
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert load_yaml(file)[0] == {"a": 1}


def test_training_is_not_measured_on_what_failed(tmp_path, monkeypatch):
    """The model was never shown them; they would end hours of training."""
    pytest.importorskip("sae_lens")
    folder = write_harvest(tmp_path / "h", torch.randn(400, 4))
    lines = (folder / "samples.jsonl").read_text()
    bad = '{"key": "bad", "prompt": "", "picture": null, "concepts": []}\n'
    (folder / "samples.jsonl").write_text(lines + bad)
    asked = []

    def measurable(samples, held_out, folders, limit):
        asked.extend(held_out.tolist())
        return []

    monkeypatch.setattr(harvest_training, "measurable_samples", measurable)
    monkeypatch.setattr(
        harvest_training, "held_out_samples", lambda *_: torch.tensor([3, 40])
    )
    harvest_training.train_on_harvest(
        HarvestTraining(
            harvest=folder,
            site=SITE,
            out=tmp_path / "sae",
            training=SAETraining(d_sae=8, k=4, training_tokens=40, batch_tokens=20),
            fidelity=FidelitySettings(samples=2),
            buffer_mib=0.4,
        )
    )
    assert asked == [3]
