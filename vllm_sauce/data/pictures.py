# SPDX-License-Identifier: Apache-2.0
"""Pictures as vLLM's server reads them: the same pixels, or refused by both."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vllm_sauce.errors import PictureError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""What a folder's pictures are called."""

# Readers that run programs or need others' are left out, as in vLLM.
_FORMATS: Final = (
    *("AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR"),
    *("GIF", "ICNS", "ICO", "IM", "IMT", "IPTC", "JPEG", "JPEG2000", "MCIDAS", "MSP"),
    *("PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA"),
    *("TIFF", "WEBP", "XBM", "XPM", "XVTHUMB"),
)
_MOST_PIXELS: Final = 178_956_970
_WHITE: Final = (255, 255, 255)


def decode_picture(content: bytes, name: str = "the image") -> Image:
    """Return a picture in RGB: turned as EXIF says, what is transparent on white.

    ``name`` is what an error calls it.

    Source: vLLM 0.32, multimodal/media/image.py (``ImageMediaIO``), multimodal/image.py
    Raises: PictureError
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(io.BytesIO(content), formats=_FORMATS)
        _check_size(image)
        with contextlib.suppress(Exception):
            image = ImageOps.exif_transpose(image)
        image.load()
        return _on_white(image)
    except UnidentifiedImageError as error:
        # Its words name a place in memory, another one each time.
        raise PictureError(f"{name} is no picture that is known") from error
    except Exception as error:  # a decoder of PIL's fails in ways of its own
        reason = str(error) or type(error).__name__
        raise PictureError(
            f"{name} is no picture that can be read: {reason}"
        ) from error


def picture_files(folder: Path, *, inner: bool = False) -> list[Path]:
    """Return a folder's pictures in order; hidden files and folders are none.

    ``inner``: those in its folders, too.

    Raises: OSError
    """
    found = folder.rglob("*") if inner else folder.iterdir()
    return sorted(
        path
        for path in found
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _check_size(image: Image) -> None:
    most = int(os.environ.get("VLLM_MAX_IMAGE_PIXELS", _MOST_PIXELS))
    width, height = image.size
    if 0 < most < width * height:
        raise ValueError(
            f"it has {width} x {height} pixels, at most {most} are read; make it "
            "smaller or set VLLM_MAX_IMAGE_PIXELS"
        )


def _on_white(image: Image) -> Image:
    from PIL import Image

    if image.mode == "RGB":
        return image
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    shown = Image.new("RGB", image.size, _WHITE)
    shown.paste(layer, mask=layer.getchannel("A"))
    return shown
