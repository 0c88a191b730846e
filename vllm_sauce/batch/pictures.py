# SPDX-License-Identifier: Apache-2.0
"""Pictures of a row: a path, a data URL or bytes; never fetched from a network."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from vllm_sauce.data.pictures import decode_picture
from vllm_sauce.errors import InvalidRequestError, PictureError


def read_picture(source: Any, folder: Path) -> Any:
    """Return a picture in RGB; a path is relative to ``folder``.

    A mapping with bytes or path is what Hugging Face's data sets hold.

    Raises: InvalidRequestError
    """
    try:
        return decode_picture(_bytes_of(source, folder))
    except PictureError as error:
        raise InvalidRequestError(f"the image cannot be read: {error}") from None


def _bytes_of(source: Any, folder: Path) -> bytes:
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return source
    if not isinstance(source, str) or not source:
        raise InvalidRequestError(
            "an image is a path, a data URL or bytes, got "
            f"{'nothing' if not source else type(source).__name__}"
        )
    if source.startswith("data:"):
        return _decoded(source)
    if "://" in source[:16]:
        raise InvalidRequestError(
            f"pictures are not fetched, got {source[:64]!r}; give a path, a data URL "
            "or bytes"
        )
    try:
        return (folder / source).read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidRequestError(
            f"the image cannot be read: {str(error)[:200]}"
        ) from None


def _decoded(url: str) -> bytes:
    head, comma, text = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InvalidRequestError(
            "a data URL is data:image/...;base64,... , got another form"
        )
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequestError(f"the image is not base64: {error}") from None
