# SPDX-License-Identifier: Apache-2.0
"""Harvesting in a real engine, against transformers; resumed, deduplicated, refused."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.data.picture_kinds import claiming
from tests.engines import starts_engine
from tests.places import ROOT
from tests.plugin.conftest import RUNNER
from tests.plugin.support import LONG, MODEL, picture
from vllm_sauce.activations.shards import Role, read_index
from vllm_sauce.activations.store import ActivationStore
from vllm_sauce.data.samples import PictureFile, Sample
from vllm_sauce.errors import ActivationsError, ConfigError, UnsupportedFeatureError
from vllm_sauce.learning.harvest.engine import HarvestEngine, harvest
from vllm_sauce.learning.harvest.folder import FAILURES_FILE
from vllm_sauce.learning.harvest.settings import HarvestRequest, HarvestSettings
from vllm_sauce.models.site_hooks import site_hook

SITES = ("vision", "decoder.1")
# Chunked prefill, and so few blocks that long samples are preempted.
ENGINE = {
    "dtype": "float32",
    "max_model_len": 256,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "block_size": 32,
    "num_gpu_blocks_override": 14,
}
GENERATED = 5


@pytest.fixture(scope="module")
@starts_engine
def engine():
    return HarvestEngine.open(request((), Path())[0])


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Text alone, pictures alone, two questions about one picture, long ones."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        picture(number).save(folder / f"{number}.png")
    asked = [
        (0, "What object is in the picture?"),
        (None, "is there a dog ?"),
        (0, "What colour is it?"),
        (1, LONG[:300]),
        (2, LONG[:280]),
        (None, LONG[:350]),
        (3, "describe the picture"),
        (1, LONG[:310]),
    ]
    return tuple(
        Sample(
            key=f"s{i}",
            prompt=words,
            picture=None if shown is None else PictureFile(folder / f"{shown}.png"),
            concepts=("dog",) if shown else (),
        )
        for i, (shown, words) in enumerate(asked)
    )


def request(samples, out, **options) -> tuple[HarvestRequest, tuple[Sample, ...]]:
    options = {"max_tokens": GENERATED, "shard_tokens": 300, "in_flight": 4, **options}
    settings = HarvestSettings(**options)
    told = HarvestRequest(
        model=str(MODEL), sites=SITES, out=out, harvest=settings, engine_args=ENGINE
    )
    return told, samples


@pytest.fixture(scope="module")
def harvested(engine, samples, tmp_path_factory):
    out = tmp_path_factory.mktemp("harvest") / "h"
    report = harvest(*request(samples, out), engine=engine)
    assert report.num_samples == len(samples)
    assert not report.failed
    return out


@pytest.fixture(scope="module")
def expected(samples):
    """What transformers has at both sites, and each token's role."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(MODEL)
    return [hooked(model.eval(), processor, sample) for sample in samples]


@torch.inference_mode()
def hooked(model, processor, sample):
    content = [{"type": "text", "text": sample.prompt}]
    images = None
    if sample.picture is not None:
        from PIL import Image

        content.insert(0, {"type": "image"})
        images = [Image.open(sample.picture.path).convert("RGB")]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(text=text, images=images, return_tensors="pt")
    prompt = inputs["input_ids"].shape[1]
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=GENERATED + 1)
    # The last token was never fed back.
    inputs["input_ids"] = ids[:, :-1]
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    seen = {}

    def keep(site):
        def keep_site(x):
            seen[site] = x[0].clone()
            return x

        return keep_site

    with site_hook(model, "decoder.1", keep("decoder.1")):
        if images is None:
            model(**inputs)
        else:
            with site_hook(model, "vision", keep("vision")):
                model(**inputs)
    roles = [
        Role.GENERATED
        if i >= prompt
        else Role.IMAGE
        if token == model.config.image_token_id
        else Role.TEXT
        for i, token in enumerate(inputs["input_ids"][0].tolist())
    ]
    return seen, roles


def rows_of(store, number):
    sample, position, role = store.labels()
    mine = (sample == number).nonzero()[:, 0]
    mine = mine[position[mine].argsort()]
    return store.rows(mine), position[mine].tolist(), role[mine].tolist()


def test_decoder_rows_are_those_of_a_forward_hook(harvested, expected):
    store = ActivationStore.open(harvested, "decoder.1", verify=True)
    assert len(store) == sum(len(roles) for _, roles in expected)
    for number, (seen, roles) in enumerate(expected):
        x, position, role = rows_of(store, number)
        assert position == list(range(len(roles)))
        assert role == [int(one) for one in roles]
        torch.testing.assert_close(x, seen["decoder.1"], rtol=1e-4, atol=1e-4)


def test_vision_rows_are_those_of_a_forward_hook_once_a_picture(
    harvested, expected, samples
):
    store = ActivationStore.open(harvested, "vision", verify=True)
    lines = store.samples()
    assert [line["key"] for line in lines] == [sample.key for sample in samples]
    digests = [line["picture"] for line in lines]
    assert len({d for d in digests if d}) == 4
    sample, _, _ = store.labels()
    assert len(store) == 4 * 49
    owners = sorted(set(sample.tolist()))
    assert len({digests[owner] for owner in owners}) == 4
    for owner in owners:
        x, position, _ = rows_of(store, owner)
        assert position == list(range(49))
        want = expected[owner][0]["vision"]
        torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-4)


def test_stopped_anywhere_it_goes_on(engine, samples, harvested, tmp_path):
    """Interrupted twice; whole at the end, with the same rows."""

    def stop_at(count):
        def progress(done, total):
            if done >= count:
                raise KeyboardInterrupt

        return progress

    out = tmp_path / "h"
    for count in (3, 6):
        with pytest.raises(KeyboardInterrupt):
            harvest(
                *request(samples, out, shard_tokens=1),
                progress=stop_at(count),
                engine=engine,
            )
        numbers = [n for entry in read_index(out) for n in entry.samples]
        assert len(numbers) == len(set(numbers)) < len(samples)
    report = harvest(*request(samples, out, shard_tokens=1), engine=engine)
    assert report.num_samples == len(samples)
    numbers = [n for entry in read_index(out) for n in entry.samples]
    assert sorted(numbers) == list(range(len(samples)))
    for site in SITES:
        resumed, whole = (ActivationStore.open(f, site) for f in (out, harvested))
        assert len(resumed) == len(whole)
    resumed, whole = (ActivationStore.open(f, SITES[1]) for f in (out, harvested))
    for number in range(len(samples)):
        x, want = rows_of(resumed, number)[0], rows_of(whole, number)[0]
        torch.testing.assert_close(x, want, rtol=1e-4, atol=1e-4)
    assert harvest(*request(samples, out)).num_samples == len(samples)  # no engine


def test_a_bad_picture_fails_alone(engine, samples, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    huge = Sample(key="huge", prompt="dog " * 400)
    bad = Sample(key="bad", prompt="What is it?", picture=PictureFile(broken))
    (tmp_path / "bomb.png").write_bytes(claiming(20_000, 20_000))
    bomb = Sample(key="bomb", prompt="?", picture=PictureFile(tmp_path / "bomb.png"))
    half = Sample(key="half", prompt="", problem="half of one")
    given = (samples[0], bad, huge, bomb, half, samples[1])
    report = harvest(*request(given, tmp_path / "h"), engine=engine)
    assert report.num_samples == 2
    assert report.failed["half"] == "half of one"
    assert "400000000 pixels" in report.failed["bomb"]
    assert "no picture" in report.failed["bad"] or "is no" in report.failed["bad"]
    assert "256" in report.failed["huge"]
    lines = (tmp_path / "h" / FAILURES_FILE).read_text().splitlines()
    keys = {json.loads(line)["key"] for line in lines}
    assert keys == {"bad", "huge", "bomb", "half"}
    assert len(ActivationStore.open(tmp_path / "h", "vision")) == 49


def test_a_full_disk_stops_it_and_keeps_what_is_written(
    engine, samples, tmp_path, monkeypatch
):
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    out = tmp_path / "h"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ActivationsError, match="No space left on device"):
            harvest(*request(samples, out, shard_tokens=1), engine=engine)
    written = [n for entry in read_index(out) for n in entry.samples]
    assert 0 < len(written) < len(samples)
    report = harvest(*request(samples, out, shard_tokens=1), engine=engine)
    assert report.num_samples == len(samples)
    assert len(ActivationStore.open(out, "vision", verify=True)) == 4 * 49


@pytest.mark.skipif(RUNNER == "v2", reason="a process of its own has no stand-ins")
def test_killed_it_goes_on(engine, samples, harvested, tmp_path):
    """SIGKILL once the first shard is there."""
    out = tmp_path / "h"
    many = tuple(
        Sample(key=f"{s.key}/{i}", prompt=f"{s.prompt} {i}", picture=s.picture)
        for i in range(40)
        for s in samples[:3]
    )
    code = f"""
import json, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "kernels")!r}]
from tests.plugin.tap.test_harvest_worker import *
samples = tuple(
    Sample(key=key, prompt=words, picture=PictureFile(Path(file)) if file else None)
    for key, words, file in json.loads(sys.stdin.read())
)
given = request(samples, Path(sys.argv[1]), shard_tokens=1)
harvest(*given)
"""
    given = [[s.key, s.prompt, s.picture.name if s.picture else ""] for s in many]
    (tmp_path / "samples.json").write_text(json.dumps(given))
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(out)],
        stdin=(tmp_path / "samples.json").open(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    while len(list(out.glob("*.safetensors"))) < 3 and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    before = [n for entry in read_index(out) for n in entry.samples]
    assert 0 < len(before) < len(many)
    report = harvest(*request(many, out), engine=engine)
    assert report.num_samples == len(many)
    after = [n for entry in read_index(out) for n in entry.samples]
    assert sorted(after) == list(range(len(many)))
    assert len(ActivationStore.open(out, "vision", verify=True)) == 49


def test_another_harvests_folder_is_refused(samples, harvested, tmp_path):
    with pytest.raises(ActivationsError, match="other samples"):
        harvest(*request(samples[:3], harvested))
    with pytest.raises(ActivationsError, match="other max_tokens"):
        harvest(*request(samples, harvested, max_tokens=1))
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ActivationsError, match="something else"):
        harvest(*request(samples, tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sites": ()}, "name a site"),
        ({"sites": ("vision", "vision")}, "each site once"),
        ({"sites": ("layer.3",)}, "a site is"),
        ({"dtype": "int8"}, "dtype is one of"),
        ({"in_flight": 0}, "in_flight must be at least 1"),
        ({"engine_args": {"enable_prefix_caching": True}}, "enable_prefix_caching"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        if {"dtype", "in_flight"} & set(options):
            HarvestSettings(**options)
        else:
            HarvestRequest(
                **{"model": "m", "sites": SITES, "out": Path("x"), **options}
            )


def test_what_hides_tokens_from_the_sites_is_refused(samples):
    from types import SimpleNamespace as Config

    from vllm_sauce.plugin.tap.harvest_worker import inject_tap

    section = {"sauce_harvest": {"sites": ["vision"], "dtype": "auto"}}
    parallel = Config(
        data_parallel_size=1,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        distributed_executor_backend="mp",
        world_size=1,
    )
    for eager, caching, words in (
        (False, False, "enforce_eager"),
        (True, True, "prefix_caching"),
    ):
        config = Config(
            additional_config=section,
            model_config=Config(
                enforce_eager=eager, multimodal_config=None, is_encoder_decoder=False
            ),
            cache_config=Config(enable_prefix_caching=caching),
            compilation_config=None,
            parallel_config=parallel,
            lora_config=None,
            speculative_config=None,
        )
        with pytest.raises(UnsupportedFeatureError, match=words):
            inject_tap(torch.nn.Linear(1, 1), config)
    config.speculative_config = Config(method="ngram")
    with pytest.raises(UnsupportedFeatureError, match="drafted tokens"):
        inject_tap(torch.nn.Linear(1, 1), config)
    config.speculative_config = None
    parallel.tensor_parallel_size = parallel.world_size = 2
    with pytest.raises(UnsupportedFeatureError, match="one device an engine"):
        inject_tap(torch.nn.Linear(1, 1), config)
    both = Config(additional_config={"sauce": {}, "sauce_harvest": {}})
    with pytest.raises(ConfigError, match="either harvests or edits"):
        inject_tap(torch.nn.Linear(1, 1), both)
    less = Config(additional_config={"sauce_harvest": {"sites": ["vision"]}})
    with pytest.raises(ConfigError, match="must have dtype, sites"):
        inject_tap(torch.nn.Linear(1, 1), less)
