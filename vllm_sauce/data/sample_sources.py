# SPDX-License-Identifier: Apache-2.0
"""Samples for a harvest: those of a concepts.yaml, pictures and prompts, texts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vllm_sauce.data.concepts_yaml import ConceptFile
from vllm_sauce.data.example_sources import RawExample, read_source
from vllm_sauce.data.samples import PROMPT, Sample, samples_of
from vllm_sauce.data.schema import Source
from vllm_sauce.errors import ConfigError
from vllm_sauce.files import is_unicode, read_lines


def find_samples(
    *,
    concepts: Path | None = None,
    split: str | None = None,
    pictures: Path | None = None,
    table: Path | None = None,
    image_column: str | None = None,
    prompt_column: str | None = None,
    prompts: Sequence[str] = (),
    texts: Path | None = None,
) -> list[Sample]:
    """Return the samples of the one source that is given.

    Raises: ConfigError, ActivationsError
    """
    names = ("--concepts", "--pictures", "--table", "--texts")
    values = (concepts, pictures, table, texts)
    given = [n for n, value in zip(names, values, strict=True) if value is not None]
    if len(given) != 1:
        raise ConfigError(
            f"give one of {', '.join(names)}, got {' and '.join(given) or 'none'}"
        )
    if split is not None and concepts is None:
        raise ConfigError("--split divides a concepts.yaml; give --concepts")
    if (image_column or prompt_column) and table is None:
        raise ConfigError("columns are of a table; give --table")
    if concepts is not None:
        if prompts:
            raise ConfigError("concepts.yaml says what is asked; leave --prompt out")
        file = ConceptFile.read(concepts)
        bad = [_bad(key, reason) for key, reason in file.failed.items()]
        return file.samples(split) + bad
    if texts is not None:
        return text_samples(texts)
    asked = tuple(prompts) or (PROMPT,)
    if not all(map(is_unicode, asked)):
        raise ConfigError("--prompt must be UTF-8; type it anew, or set the locale")
    if pictures is not None:
        source = Source(folder=str(pictures))
    elif image_column is None and prompt_column is None:
        raise ConfigError("say which columns: --image-column, --prompt-column or both")
    else:
        source = Source(jsonl=str(table), image=image_column, prompt=prompt_column)
    raw = read_source(source, Path())
    return [sample for example in raw for sample in _asked(example, asked)]


def text_samples(file: Path) -> list[Sample]:
    """Return a sample for each line that is not empty. Raises: ConfigError"""
    try:
        lines = read_lines(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read texts from {file}: {error}") from error
    samples = [
        Sample(key=f"{file.name}#{number}", prompt=line.strip())
        for number, line in enumerate(lines)
        if line.strip()
    ]
    if not samples:
        raise ConfigError(f"{file} holds no text: one prompt a line is wanted")
    return samples


def _asked(example: RawExample, prompts: Sequence[str]) -> Sequence[Sample]:
    if example.problem:
        return [_bad(example.key, example.problem)]
    words = prompts if example.words is None else (example.words,)
    return samples_of(example.key, words, example.picture, example.concepts)


def _bad(key: str, problem: str) -> Sample:
    return Sample(key=key, prompt="", problem=problem)
