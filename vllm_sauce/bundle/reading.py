# SPDX-License-Identifier: Apache-2.0
"""Reading of a bundle folder: nothing is believed before it is checked."""

from __future__ import annotations

import json
import time
from functools import lru_cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vllm_sauce.bundle.schema import FORMAT, VERSIONS, BundleFile, ConceptFile
from vllm_sauce.concepts import Catalogue, Concept, decoder_layer_idx
from vllm_sauce.errors import BundleCorruptError, BundleNotFoundError, ConfigError
from vllm_sauce.files import distinct_keys, file_sha256, problems

BUNDLE_FILE = "bundle.json"


def member(folder: Path, name: str) -> Path:
    """Return the path of a bundle's file, which must lie in the folder itself.

    Raises: BundleNotFoundError, BundleCorruptError
    """
    path = folder / name
    if not path.exists():
        raise BundleNotFoundError(f"no bundle at {folder}: {name} is missing")
    if path.resolve().parent != folder.resolve() or not path.is_file():
        raise BundleCorruptError(
            f"{path} must be a plain file inside the bundle, got a link or a folder; "
            "copy the bundle with its links resolved"
        )
    return path


# A server's start reads the same bytes at every step.
@lru_cache(maxsize=1)
def parse(raw: bytes, source: Path) -> tuple[BundleFile, Catalogue]:
    """Parse bundle.json strictly, and check its catalogue against its sites.

    Raises: BundleCorruptError
    """
    parsed = _parse_json(raw, source)
    try:
        _check_sites(parsed)
        concepts = [entry.concept(name) for name, entry in parsed.concepts.items()]
        for concept in concepts:
            _check_edits(concept, parsed)
        return parsed, Catalogue(concepts)
    except ConfigError as error:
        raise BundleCorruptError(f"{source}: {error}") from error


def _parse_json(raw: bytes, source: Path) -> BundleFile:
    try:
        data = json.loads(raw, object_pairs_hook=distinct_keys)
    except (ValueError, RecursionError) as error:
        raise BundleCorruptError(f"{source} is not whole JSON: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise BundleCorruptError(f'{source} must have "format": "{FORMAT}"')
    version = data.get("version")
    if isinstance(version, bool) or version not in VERSIONS:
        raise BundleCorruptError(
            f"{source}: this vllm-sauce reads bundle versions {VERSIONS}, "
            f"got {version!r}; update vllm-sauce or export the bundle again"
        )
    try:
        return BundleFile.model_validate_json(raw)
    except ValidationError as error:
        raise BundleCorruptError(f"{source}: {problems(error, 5)}") from error


def read_concepts(path: str | Path) -> Catalogue:
    """Return the catalogue of a JSON file that holds a bundle.json's ``concepts``.

    Raises: BundleNotFoundError, BundleCorruptError
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise BundleNotFoundError(f"no catalogue at {path}: {error}") from error
    try:
        json.loads(raw, object_pairs_hook=distinct_keys)
        entries = TypeAdapter(dict[str, ConceptFile]).validate_json(raw)
        return Catalogue(entry.concept(name) for name, entry in entries.items())
    except (ValueError, RecursionError) as error:
        raise BundleCorruptError(
            f"{path} must hold an object of concepts as bundle.json has them: {error}"
        ) from error


def check_hash(path: Path, want: str, *, anew: bool = True) -> None:
    """Check a file's SHA-256.

    ``anew=False`` lets a file be that this process has hashed and that is the same
    file since, by its inode, size and times.

    Raises: BundleCorruptError
    """
    got = file_sha256(path) if anew else _sha256_once(path.resolve())
    if got != want:
        raise BundleCorruptError(
            f"{path} must have SHA-256 {want}, got {got}; copy the bundle again"
        )


SETTLED_NS = 2 * 10**9
"""How long a file must have been left alone for its times to tell it from another:
clocks of file systems tick, and two writes within a tick have the same time."""

_hashed: dict[Path, tuple[tuple[int, ...], str]] = {}


def _sha256_once(path: Path) -> str:
    now, identity = time.time_ns(), _identity(path)
    known = _hashed.get(path)
    if known is not None and known[0] == identity:
        return known[1]
    digest = file_sha256(path)
    if max(identity[-2:]) < now - SETTLED_NS and _identity(path) == identity:
        _hashed[path] = identity, digest
    return digest


def _identity(path: Path) -> tuple[int, ...]:
    found = path.stat()
    # Any write sets the last one, which nobody can set back.
    times = found.st_mtime_ns, found.st_ctime_ns
    return (found.st_dev, found.st_ino, found.st_size, *times)


def _check_sites(parsed: BundleFile) -> None:
    files = [site.file for site in parsed.sites.values()]
    if len(set(files)) != len(files):
        raise ConfigError("two sites share one file")
    text = parsed.fingerprint.text
    for name, site in parsed.sites.items():
        layer_idx = decoder_layer_idx(name)
        if layer_idx is None:
            continue
        num_layers = text.num_hidden_layers
        if num_layers is not None and layer_idx >= num_layers:
            raise ConfigError(f"site {name!r}: the model has {num_layers} layers")
        if text.hidden_size not in (None, site.d_model):
            raise ConfigError(
                f"site {name!r} has d_model {site.d_model}, "
                f"the model's hidden_size is {text.hidden_size}"
            )


def _check_edits(concept: Concept, parsed: BundleFile) -> None:
    for name, edit in concept.edits.items():
        site = parsed.sites.get(name)
        if site is None:
            raise ConfigError(
                f"concept {concept.name!r} edits {name!r}, "
                f"the bundle has {sorted(parsed.sites)}"
            )
        if max(edit.latents) >= site.d_sae:
            raise ConfigError(
                f"concept {concept.name!r} at {name!r}: latents must be below "
                f"d_sae={site.d_sae}, got {max(edit.latents)}"
            )
