# SPDX-License-Identifier: Apache-2.0
"""Examples that are texts: of a table, a line each, and in groups."""

from tests.data.test_concepts_yaml import DOG, folder, jsonl, read


def test_text_alone_is_a_sample_without_a_picture(tmp_path):
    folder(tmp_path / "dogs", range(4))
    jsonl(tmp_path / "p.jsonl", [{"t": f"you {i}"} for i in range(9)])
    jsonl(tmp_path / "n.jsonl", [{"t": f"I {i}"} for i in range(9)])
    text = "{domain: text, positive: {jsonl: p.jsonl, prompt: t}"
    file = read(
        tmp_path,
        DOG
        + "    negative: {jsonl: n.jsonl, prompt: t}\n"
        + f"  rude: {text}, negative: {{jsonl: n.jsonl, prompt: t}}}}\n",
    )
    rude = file.concepts["rude"]
    assert {s.prompt for e in rude.positive for s in e.samples()} == {
        f"you {i}" for i in range(9)
    }
    assert all(e.picture is None for e in (*rude.positive, *rude.negative))


def test_a_prompt_a_line_is_as_a_table_of_prompts(tmp_path):
    words = [f"I {i}" for i in range(9)]
    jsonl(tmp_path / "p.jsonl", [{"t": f"you {i}"} for i in range(9)])
    jsonl(tmp_path / "n.jsonl", [{"t": one} for one in words])
    (tmp_path / "n.txt").write_bytes("\r\n\n".join(words).encode() + b"\n ")
    text = "version: 1\nminimum: 1\nconcepts:\n  rude: {positive: {jsonl: p.jsonl, "
    text += "prompt: t}, negative: {%s}}\n"
    table, plain = (
        read(tmp_path, text % one)
        for one in ("jsonl: n.jsonl, prompt: t", "text: n.txt")
    )
    assert [(e.digest, e.prompts, e.split) for e in plain.examples] == [
        (e.digest, e.prompts, e.split) for e in table.examples
    ]
    assert {e.prompts for e in plain.concepts["rude"].negative} == {
        (one,) for one in words
    }


def test_rows_of_a_group_are_in_one_split(tmp_path):
    asked = [{"t": f"{i % 4} of {i // 4}", "g": f"g{i // 4}"} for i in range(48)]
    jsonl(tmp_path / "p.jsonl", asked)
    # Other tables' rows of a group, and a row that is in two.
    others = [{"t": f"not {i}", "g": f"g{i}"} for i in range(12)]
    jsonl(tmp_path / "n.jsonl", [*others, {"t": "both", "g": "g0"}])
    jsonl(tmp_path / "m.jsonl", [{"t": "both", "g": "g1"}])
    file = read(
        tmp_path,
        "version: 1\nminimum: 1\nconcepts:\n  rude:\n"
        "    positive: {jsonl: p.jsonl, prompt: t, group: g}\n    negative:\n"
        "      - {jsonl: n.jsonl, prompt: t, group: g}\n"
        "      - {jsonl: m.jsonl, prompt: t, group: g}\n",
    )
    split = {e.prompts[0]: e.split for e in file.examples}
    for number in range(12):
        one = {split[f"{i} of {number}"] for i in range(4)}
        assert one == {split[f"not {number}"]}
    assert split["both"] == split["not 0"] == split["not 1"]
    assert set(split.values()) == {"selection", "calibration", "scoring"}
