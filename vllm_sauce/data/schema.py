# SPDX-License-Identifier: Apache-2.0
"""The shape of concepts.yaml; docs/concepts-yaml.md explains it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from vllm_sauce.data.located_yaml import Lines, load_yaml
from vllm_sauce.errors import ConfigError

SPLITS = ("selection", "calibration", "scoring")
"""What examples are for: ranking latents, choosing an edit, measuring the result."""

_Text = Annotated[str, Field(min_length=1, pattern=r"\S")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


_Texts = Annotated[list[_Text], Field(min_length=1), BeforeValidator(_listed)]


class FolderSource(_Strict):
    """A folder of pictures, with its subfolders."""

    folder: _Text


class _Columns(_Strict):
    image: _Text | None = None
    """Column of the picture."""
    prompt: _Text | None = None
    """Column of the words that go with it, or that stand alone."""

    @model_validator(mode="after")
    def _something(self) -> _Columns:
        if self.image is None and self.prompt is None:
            raise ValueError("name a column: image, prompt or both")
        return self


class JsonlSource(_Columns):
    """A file with a JSON object a line."""

    jsonl: _Text


class ParquetSource(_Columns):
    """A parquet file, or a folder of them."""

    parquet: _Text


class DatasetSource(_Columns):
    """A Hugging Face dataset that was written with save_to_disk."""

    dataset: _Text
    split: _Text | None = None
    """Which part of a DatasetDict."""


TableSource = JsonlSource | ParquetSource | DatasetSource
_KINDS = ("folder", "jsonl", "parquet", "dataset")


def _kind(value: object) -> str | None:
    """Return which source a mapping is, by the key that names its file."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    found = [kind for kind in _KINDS if isinstance(value, dict) and kind in value]
    return found[0] if len(found) == 1 else None


_WANTED = Discriminator(
    _kind,
    custom_error_type="source",
    custom_error_message="a source is a folder's path or a mapping with exactly one of "
    "jsonl, parquet, dataset (and the columns image and prompt)",
)
_Source = Annotated[
    Annotated[FolderSource, Tag("folder")]
    | Annotated[JsonlSource, Tag("jsonl")]
    | Annotated[ParquetSource, Tag("parquet")]
    | Annotated[DatasetSource, Tag("dataset")],
    _WANTED,
]


def _as_sources(value: object) -> object:
    values = value if isinstance(value, list) else [value]
    return [{"folder": item} if isinstance(item, str) else item for item in values]


Sources = Annotated[list[_Source], Field(min_length=1), BeforeValidator(_as_sources)]


class _Labels(_Strict):
    concepts: _Text
    """Column with the names of the concepts that the row has: a list, or one name."""


class JsonlLabels(JsonlSource, _Labels):
    """A JSON-lines file whose rows say which concepts they have."""


class ParquetLabels(ParquetSource, _Labels):
    """The same as parquet."""


class DatasetLabels(DatasetSource, _Labels):
    """The same as a dataset."""


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


LabelledTables = Annotated[
    list[
        Annotated[
            Annotated[JsonlLabels, Tag("jsonl")]
            | Annotated[ParquetLabels, Tag("parquet")]
            | Annotated[DatasetLabels, Tag("dataset")],
            _WANTED,
        ]
    ],
    Field(min_length=1),
    BeforeValidator(_as_list),
]


class Questions(_Strict):
    """How a concept of a domain is asked for, and what is answered."""

    name: _Texts = ["What is in the picture?"]
    """Its answer names the concept; one wording or several."""
    exists: _Texts = ["Is there a {concept} in the picture?"]
    """Its answer is yes or no; {a concept} puts "a" or "an" before the word."""
    yes: _Text = "yes"
    no: _Text = "no"

    @field_validator("exists")
    @classmethod
    def _has_a_place(cls, texts: list[str]) -> list[str]:
        for text in texts:
            if "{concept}" not in text and "{a concept}" not in text:
                raise ValueError("must hold {concept} or {a concept}, for the word")
        return texts

    @model_validator(mode="after")
    def _two_answers(self) -> Questions:
        if self.yes == self.no:
            raise ValueError(f"yes and no must differ, both are {self.yes!r}")
        return self

    def asks(self, word: str, wording: int = 0) -> str:
        """Return the yes/no question for one concept's word."""
        article = "an" if word[:1].lower() in "aeiou" else "a"
        text = self.exists[wording].replace("{a concept}", f"{article} {word}")
        return text.replace("{concept}", word)


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


def read_yaml(path: Path) -> tuple[ConceptsYaml, Lines]:
    """Read and check the file's form; what it names is not opened yet.

    Raises: ConfigError naming file, line and place
    """
    data, lines = load_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} must hold version, concepts, ...; see docs/concepts-yaml.md"
        )
    try:
        return ConceptsYaml.model_validate(data), lines
    except ValidationError as error:
        raise ConfigError(_first_problem(path, lines, error)) from error


def _first_problem(path: Path, lines: Lines, error: ValidationError) -> str:
    """Say what is wrong first, where, and how much else is."""
    problems = error.errors(include_url=False)
    first = problems[0]
    place = [step for step in first["loc"] if step not in _KINDS]
    named = ".".join(map(str, place)) or "the file"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"unknown key {place[-1]!r}"
        named = ".".join(map(str, place[:-1])) or "the top level"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{path}, line {lines.line(first['loc'])}: {named}: {message}{more}"
