# SPDX-License-Identifier: Apache-2.0
"""The shape of ``bundle.json``; docs/bundle-format.md is normative."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from vllm_sauce.concepts import TOKENS, Concept, SiteEdit
from vllm_sauce.errors import ConfigError

FORMAT: Final = "vllm-sauce-bundle"
VERSION: Final = 3
VERSIONS: Final = (1, 2, VERSION)

_Number = Annotated[float, Field(allow_inf_nan=False)]
_Index = Annotated[int, Field(ge=0)]
_Size = Annotated[int, Field(ge=1)]
_Count = Annotated[str, Field(pattern=r"^([2-9]|[1-9]\d+)$")]
_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

ConfigFile = Literal["config.json", "preprocessor_config.json", "processor_config.json"]
"""A file beside a model's weights that says what is made of them."""

_MOST_KEYS = 12
"""Of a configuration, named where they differ: all of another model's do."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextModel(_Strict):
    """Sizes of the language model as its config.json gives them."""

    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    vocab_size: int | None = None


class VisionModel(_Strict):
    """Sizes of the vision tower as its config.json gives them."""

    hidden_size: int | None = None
    num_hidden_layers: int | None = None
    image_size: JsonValue = None
    patch_size: JsonValue = None


class ModelFingerprint(_Strict):
    """What tells one model from another."""

    architecture: str
    text: TextModel
    vision: VisionModel | None = None
    weights_sha256: _Sha256 | None = None
    config: dict[ConfigFile, dict[str, JsonValue]] | None = None
    """What the model's files say, by dotted keys; since version 3. None: not known."""

    def differences(self, other: ModelFingerprint) -> tuple[str, ...]:
        """Return one line for each field that differs: mine, then the other's.

        Of configurations only where both are known.
        """
        lines = _lines(_flat(self), _flat(other))
        if self.config is None or other.config is None:
            return tuple(lines)
        found = list(_config_lines(self.config, other.config))
        more = len(found) - _MOST_KEYS
        told = [f"and {more} more keys"] if more > 0 else []
        return (*lines, *found[:_MOST_KEYS], *told)


class RowFile(_Strict):
    """How one of the last latents was fitted; see ``Row``."""

    concept: str
    kind: Literal[
        "others",
        "absence",
        "words",
        "saying",
        "before",
        "difference",
        "leace",
        "random",
    ]
    shrinkage: Annotated[float, Field(ge=0, le=1)]
    num_samples: tuple[_Index, _Index]
    d_prime: _Number


class SiteFile(_Strict):
    """One site's SAE file."""

    file: Annotated[str, Field(pattern=r"^sae\.[A-Za-z0-9.]+\.safetensors$")]
    sha256: _Sha256
    architecture: str
    d_model: _Size
    d_sae: _Size
    apply_b_dec_to_input: bool
    k: _Size | None = None
    normalize_activations: Literal["none", "layer_norm", "constant_norm_rescale"] = (
        "none"
    )
    activation: dict[str, _Number | None] = {}
    rows: list[RowFile] = []
    """Of the last latents, if they were fitted with labels; since version 2."""

    @model_validator(mode="after")
    def _rows_are_latents(self) -> Self:
        if len(self.rows) > self.d_sae:
            raise ValueError(f"{len(self.rows)} rows are among {self.d_sae} latents")
        if self.rows and (self.k or self.normalize_activations != "none"):
            raise ValueError("rows stand beside no topk SAE and no normalised input")
        return self


class EditFile(_Strict):
    """One concept's edit at one site, as parallel lists."""

    latents: list[_Index]
    gamma: list[_Number]
    shift: list[_Number]
    gate: list[_Number]
    tokens: list[Literal["sink", "image", "prompt", "generated"]] | None = None
    """Since version 2; before it every token was edited."""

    @classmethod
    def of(cls, edit: SiteEdit) -> EditFile:
        """Return how an edit is written."""
        return cls(**{name: list(getattr(edit, name)) for name in cls.model_fields})

    def edit(self) -> SiteEdit:
        """Return the edit. Raises: ConfigError"""
        lists = {name: tuple(TOKENS if v is None else v) for name, v in self}
        return SiteEdit(**lists)


class ConceptFile(_Strict):
    """One concept; its name is the key."""

    domain: str
    edits: dict[str, EditFile]
    provenance: dict[str, JsonValue] = {}
    scores: dict[str, _Number | None] = {}
    forgotten: bool = True
    """Since version 2; before it nobody had asked."""

    @classmethod
    def of(cls, concept: Concept) -> ConceptFile:
        """Return how a concept is written; it is checked when it is read."""
        return cls.model_construct(
            domain=concept.domain,
            edits={site: EditFile.of(edit) for site, edit in concept.edits.items()},
            provenance=dict(concept.provenance),
            scores=dict(concept.scores),
            forgotten=concept.forgotten,
        )

    def concept(self, name: str) -> Concept:
        """Return the concept. Raises: ConfigError"""
        try:
            edits = {site: entry.edit() for site, entry in self.edits.items()}
        except ConfigError as error:
            raise ConfigError(f"concept {name!r}: {error}") from error
        return Concept(
            name=name,
            domain=self.domain,
            edits=edits,
            provenance=self.provenance,
            scores=self.scores,
            forgotten=self.forgotten,
        )


class BundleFile(_Strict):
    """All of bundle.json."""

    format: Literal["vllm-sauce-bundle"] = FORMAT
    version: Literal[1, 2, 3] = VERSION
    fingerprint: ModelFingerprint
    sites: Annotated[dict[str, SiteFile], Field(min_length=1)]
    concepts: dict[str, ConceptFile]
    together: dict[_Count, dict[str, _Number]] = {}
    """What ``sauce eval --record`` measured of so many concepts at once; since
    version 2."""

    @model_validator(mode="after")
    def _fields_by_version(self) -> Self:
        if self.version < 2 and any(site.rows for site in self.sites.values()):
            raise ValueError("version 1 knows no rows")
        if self.version < 2 and self.together:
            raise ValueError("version 1 knows no figures of several concepts at once")
        if self.version < 3 and self.fingerprint.config is not None:
            raise ValueError(f"version {self.version} knows no config of the model")
        for name, concept in self.concepts.items():
            for site, edit in concept.edits.items():
                if (edit.tokens is None) == (self.version >= 2):
                    wanted = "names" if self.version >= 2 else "does not name"
                    raise ValueError(
                        f"concept {name!r} at {site}: version {self.version} {wanted} "
                        "the tokens of an edit"
                    )
        return self


def _flat(fingerprint: ModelFingerprint) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in fingerprint.model_dump(exclude={"config"}).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _lines(mine: Mapping[str, object], theirs: Mapping[str, object]) -> Iterator[str]:
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            yield f"{name}: {mine.get(name)!r}, not {theirs.get(name)!r}"


def _config_lines(
    mine: Mapping[ConfigFile, Mapping[str, object]],
    theirs: Mapping[ConfigFile, Mapping[str, object]],
) -> Iterator[str]:
    for file in sorted(mine.keys() | theirs.keys()):
        if file not in mine or file not in theirs:
            is_mine, is_theirs = (
                "there" if file in files else "missing" for files in (mine, theirs)
            )
            yield f"{file}: {is_mine}, not {is_theirs}"
            continue
        before, after = mine[file], theirs[file]
        for key in sorted(before.keys() | after.keys()):
            was, found = (_shown(files, key) for files in (before, after))
            # A key that is left out has its default, which need not be null.
            if (key in before) != (key in after) or before[key] != after[key]:
                yield f"{file} {key}: {was}, not {found}"


def _shown(config: Mapping[str, object], key: str) -> str:
    if key not in config:
        return "left out"
    text = repr(config[key])
    return text if len(text) <= 60 else f"{text[:60]}…"
