# SPDX-License-Identifier: Apache-2.0
"""The shape of concepts.yaml; docs/concepts-yaml.md explains it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from vllm_sauce.data.located_yaml import line_of, load_yaml
from vllm_sauce.errors import ConfigError

SPLITS = ("selection", "calibration", "scoring")
"""What examples are for: ranking latents, choosing an edit, measuring the result."""

_Text = Annotated[str, Field(min_length=1, pattern=r"\S")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


_Texts = Annotated[list[_Text], Field(min_length=1), BeforeValidator(_listed)]


_KINDS = ("folder", "text", "jsonl", "parquet", "dataset")


class Source(_Strict):
    """Where examples are: a folder of pictures, a file of prompts, or a table."""

    folder: _Text | None = None
    text: _Text | None = None
    """A file with a prompt a line."""
    jsonl: _Text | None = None
    """A file with a JSON object a line."""
    parquet: _Text | None = None
    """A parquet file, or a folder of them."""
    dataset: _Text | None = None
    """A Hugging Face dataset that was written with save_to_disk."""
    split: _Text | None = None
    """Which part of a DatasetDict."""
    image: _Text | None = None
    """Column of the picture."""
    prompt: _Text | None = None
    """Column of the words that go with it, or that stand alone."""
    concepts: _Text | None = None
    """Column with the names of the concepts that the row has: a list, or one name."""
    group: _Text | None = None
    """Column whose equal words keep rows, of any table, in one split."""

    @model_validator(mode="before")
    @classmethod
    def _of_one_kind(cls, value: object) -> object:
        if isinstance(value, str):
            return {"folder": value}
        there = [kind for kind in _KINDS if isinstance(value, dict) and kind in value]
        if not isinstance(value, dict) or len(there) != 1 or value[there[0]] is None:
            raise ValueError(
                "a source is a folder's path or a mapping with exactly one of text, "
                "jsonl, parquet, dataset (and the columns image and prompt)"
            )
        return value

    @model_validator(mode="after")
    def _has_columns(self) -> Source:
        if self.folder is not None or self.text is not None:
            if self.columns:
                what = "folder of pictures" if self.folder else "file of prompts"
                raise ValueError(f"a {what} has no columns; name a table")
        elif self.image is None and self.prompt is None:
            raise ValueError("name a column: image, prompt or both")
        if self.split is not None and self.dataset is None:
            raise ValueError("split is a part of a dataset; leave it out")
        return self

    @property
    def kind(self) -> str:
        """One of folder, text, jsonl, parquet and dataset."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def path(self) -> str:
        """The folder or file, as it was written."""
        return str(getattr(self, self.kind))

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        named = (self.image, self.prompt, self.concepts, self.group)
        return [column for column in named if column is not None]


def _of_one_sign(source: Source) -> Source:
    if source.concepts is not None:
        raise ValueError("concepts is a column of the file's pictures; leave it out")
    return source


def _labelled(source: Source) -> Source:
    if source.concepts is None:
        raise ValueError("name the column concepts, which says what each row has")
    return source


Sources = Annotated[
    list[Annotated[Source, AfterValidator(_of_one_sign)]],
    Field(min_length=1),
    BeforeValidator(_listed),
]
LabelledTables = Annotated[
    list[Annotated[Source, AfterValidator(_labelled)]],
    Field(min_length=1),
    BeforeValidator(_listed),
]


class Questions(_Strict):
    """How a concept of a domain is asked for, and what is answered."""

    name: _Texts = ["What is in the picture?"]
    """Its answer names the concept; one wording or several."""
    exists: _Texts = ["Is there a {concept} in the picture?"]
    """Its answer is yes or no; {a concept} puts "a" or "an" before the word."""
    exists_in_text: _Texts | None = None
    """The same of a text, which stands in the place of {text}; none if it is left
    out."""
    yes: _Text = "yes"
    no: _Text = "no"

    @field_validator("exists", "exists_in_text")
    @classmethod
    def _has_a_place(cls, texts: list[str] | None) -> list[str] | None:
        for text in texts or ():
            if "{concept}" not in text and "{a concept}" not in text:
                raise ValueError("must hold {concept} or {a concept}, for the word")
        return texts

    @field_validator("exists_in_text")
    @classmethod
    def _has_a_text(cls, texts: list[str] | None) -> list[str] | None:
        for text in texts or ():
            if "{text}" not in text:
                raise ValueError("must hold {text}, for the text that is asked about")
        return texts

    @model_validator(mode="after")
    def _two_answers(self) -> Questions:
        if self.yes == self.no:
            raise ValueError(f"yes and no must differ, both are {self.yes!r}")
        return self

    def asks(self, word: str, wording: int = 0, text: str | None = None) -> str:
        """Return the yes/no question for one concept's word, of a picture or a text."""
        wordings = self.exists if text is None else self.exists_in_text or []
        article = "an" if word[:1].lower() in "aeiou" else "a"
        asked = wordings[wording].replace("{a concept}", f"{article} {word}")
        asked = asked.replace("{concept}", word)
        return asked if text is None else asked.replace("{text}", text)


class ConceptEntry(_Strict):
    """One concept; its name is the key."""

    domain: _Text | None = None
    answer: _Texts | None = None
    """Words that the model says for it; default: its name."""
    positive: Sources | None = None
    negative: Sources | None = None
    prompts: _Texts | None = None


class Defaults(_Strict):
    """What a concept has that does not say otherwise."""

    prompts: _Texts = ["What is in the picture?"]
    domain: _Text = "concepts"


_Share = Annotated[float, Field(ge=0, le=1, strict=False, allow_inf_nan=False)]


class Fractions(_Strict):
    """Share of each concept's examples in each split."""

    selection: _Share = 0.5
    calibration: _Share = 0.25
    scoring: _Share = 0.25

    @model_validator(mode="after")
    def _sum(self) -> Fractions:
        total = self.selection + self.calibration + self.scoring
        if abs(total - 1) > 1e-6:
            raise ValueError(f"shares of the splits must sum to 1, got {total:g}")
        return self


class ConceptsYaml(_Strict):
    """All of concepts.yaml."""

    version: Literal[1]
    defaults: Defaults = Defaults()
    questions: dict[_Text, Questions] = {}
    """By domain; "default" is for those not named."""
    splits: Fractions = Fractions()
    minimum: Annotated[int, Field(ge=1)] = 8
    """Fewest examples with, and without, a concept in a split that is used."""
    pictures: LabelledTables | None = None
    concepts: Annotated[dict[_Text, ConceptEntry], Field(min_length=1)]

    @field_validator("concepts", mode="before")
    @classmethod
    def _empty_is_default(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: {} if entry is None else entry for name, entry in value.items()}


def read_yaml(path: Path) -> tuple[ConceptsYaml, yaml.Node | None]:
    """Read and check the file's form; what it names is not opened yet.

    Raises: ConfigError naming file, line and place
    """
    data, root = load_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} must hold version, concepts, ...; see docs/concepts-yaml.md"
        )
    try:
        return ConceptsYaml.model_validate(data), root
    except ValidationError as error:
        raise ConfigError(_first_problem(path, root, error)) from error


def _first_problem(path: Path, root: yaml.Node | None, error: ValidationError) -> str:
    """Say what is wrong first, where, and how much else is."""
    problems = error.errors(include_url=False)
    first = problems[0]
    place = first["loc"]
    named = ".".join(map(str, place)) or "the file"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key {place[-1]!r}"
        named = ".".join(map(str, place[:-1])) or "the top level"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{path}, line {line_of(root, place)}: {named}: {message}{more}"
