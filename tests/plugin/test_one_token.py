# SPDX-License-Identifier: Apache-2.0
"""What is read off a prompt alone, under edits of answers: refused, not answered plain.

The first token of an answer comes of the prompt's last one. Who asks for one token at a
time, as vLLM's beam search does, would never meet an edit of what is generated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engines import starts_engine
from tests.plugin.conftest import RUNNER, engine
from tests.plugin.random_bundle import write_decoder_bundle
from tests.plugin.support import LONG, Ask, cold, run
from tests.plugin.test_server import ONE_PROCESS, free_port, serve, wait_until_healthy
from vllm_sauce.concepts import SPARING, SiteEdit
from vllm_sauce.errors import InvalidRequestError
from vllm_sauce.plugin.frontend import admission

EDIT = SiteEdit.uniform(range(7, 40), gamma=-4.0, shift=-1.0, gate=0.05)
TOKENS = {"answers": ("generated",), "prompts": ("prompt",), "all": SPARING}
UNEDITED = "in answers and not in prompts"


@pytest.fixture(scope="module")
def folder(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose concepts edit answers, prompts, and both."""
    edits = {name: replace(EDIT, tokens=tokens) for name, tokens in TOKENS.items()}
    path = tmp_path_factory.mktemp("one") / "b"
    return write_decoder_bundle(path, model_dir, edits)


@pytest.fixture(scope="module")
@starts_engine
def llm(model_dir: Path, folder: Path) -> Iterator[Any]:
    yield engine(model_dir, {"bundle": str(folder)})


@pytest.fixture
def mandatory(llm: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make concepts mandatory: in the front, and in the core."""

    def make(*names: str) -> None:
        core = llm.llm_engine.engine_core.engine_core
        for part in (llm.llm_engine.input_processor, core):
            config = replace(part._sauce_admission.config, forget=names)
            changed = replace(part._sauce_admission, config=config)
            monkeypatch.setattr(part, "_sauce_admission", changed)

    return make


@pytest.mark.parametrize("names", [("answers",), ("all", "answers")])
def test_a_single_token_under_edits_of_answers_is_refused(
    llm: Any, names: tuple[str, ...]
) -> None:
    """The request alone; two tokens are the edited model's."""
    ask = Ask(None, LONG, names, max_tokens=1)
    with pytest.raises(InvalidRequestError, match=UNEDITED):
        llm.llm_engine.add_request("bad", ask.prompt(), ask.params())
    assert not llm.llm_engine.has_unfinished_requests()
    cold(llm)
    plain, masked = run(llm, [Ask(None, LONG), replace(ask, max_tokens=2)])
    assert plain.logprobs[1] != masked.logprobs[1]


@pytest.mark.parametrize("names", [(), ("prompts",), ("all",), ("all", "prompts")])
def test_a_single_token_of_an_edited_prompt_is_answered(
    llm: Any, names: tuple[str, ...]
) -> None:
    (reply,) = run(llm, [Ask(None, LONG, names, max_tokens=1)])
    assert len(reply.tokens) == 1


@pytest.mark.parametrize("number", [0, 5])
def test_a_prompts_own_probabilities_are_refused(llm: Any, number: int) -> None:
    """However many tokens follow."""
    ask = Ask(None, LONG, ("answers",))
    params = ask.params()
    params.prompt_logprobs = number
    with pytest.raises(InvalidRequestError, match=UNEDITED):
        llm.llm_engine.add_request("bad", ask.prompt(), params)
    assert not llm.llm_engine.has_unfinished_requests()


def test_the_core_looks_for_itself(llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an API process let in."""
    monkeypatch.setattr(admission, "refuse_unwritten", lambda params: None)
    ask = Ask(None, LONG, ("answers",), max_tokens=1)
    with pytest.raises(InvalidRequestError, match=UNEDITED):
        llm.llm_engine.add_request("bad", ask.prompt(), ask.params())
    assert not llm.llm_engine.has_unfinished_requests()


def beams(llm: Any) -> list[int]:
    """Return what a beam search of one beam finds."""
    from vllm.sampling_params import BeamSearchParams

    params = BeamSearchParams(beam_width=1, max_tokens=6, ignore_eos=True)
    (found,) = llm.beam_search([Ask(None, LONG).prompt()], params)
    return list(found.sequences[0].tokens[-6:])


@pytest.mark.parametrize("names", [("answers",), ("prompts",), ("all", "prompts")])
def test_beams_under_edits_of_one_turn_are_refused(
    llm: Any, mandatory: Any, names: tuple[str, ...]
) -> None:
    mandatory(*names)
    with pytest.raises(InvalidRequestError, match="ask without beam search"):
        beams(llm)
    assert not llm.llm_engine.has_unfinished_requests()


@pytest.mark.parametrize("names", [(), ("all",)])
def test_beams_are_the_edited_models(
    llm: Any, mandatory: Any, names: tuple[str, ...]
) -> None:
    """One beam is what is said, where a token is edited alike in either turn."""
    mandatory(*names)
    cold(llm)
    (said,) = run(llm, [Ask(None, LONG)])
    assert beams(llm) == list(said.tokens)


@pytest.mark.engine
@pytest.mark.skipif(
    RUNNER == "v2", reason="V2 on CPU needs a stand-in inside the engine's process"
)
def test_a_server_refuses_them(model_dir: Path, folder: Path, tmp_path: Path) -> None:
    """Under the policy alone, with no wish in the body."""
    port, log = free_port(), tmp_path / "log"
    process = serve(
        str(model_dir),
        *("--plugin", "sauce", "--sauce-bundle", str(folder)),
        # No server has it as its policy unless it is told twice.
        *("--sauce-forget", "answers", "--sauce-allow-weak", "answers"),
        *("--enforce-eager", "--dtype", "float32"),
        *("--max-model-len", "512", "--max-num-seqs", "8"),
        *("--served-model-name", "tiny", "--port", str(port), "--host", "127.0.0.1"),
        log=log,
        environ=ONE_PROCESS,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(process, address, log)
        talk = {"messages": [{"role": "user", "content": "what is it ?"}]}
        for path, body in (
            ("/v1/completions", {"prompt": "what is it ?"}),
            ("/v1/chat/completions", talk),
        ):
            for more, says in (
                ({"use_beam_search": True, "n": 2}, "ask without beam search"),
                ({"max_tokens": 1}, UNEDITED),
                ({"prompt_logprobs": 1}, UNEDITED),
            ):
                asked = {"model": "tiny", "max_tokens": 4, **body, **more}
                reply = httpx.post(f"{address}{path}", json=asked, timeout=60)
                assert reply.status_code == 400 and says in reply.text, reply.text
            asked = {"model": "tiny", "max_tokens": 4, **body}
            reply = httpx.post(f"{address}{path}", json=asked, timeout=60)
            assert reply.is_success and reply.headers["sauce-forget"], reply.text
    finally:
        process.terminate()
        process.wait(timeout=60)
