# SPDX-License-Identifier: Apache-2.0
"""Small pictures of every kind that users have, and some that are none."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 24, 16
TURNED = 6
"""EXIF's value for a camera held upright."""


def colours(mode: str = "RGB") -> Image.Image:
    """Return a picture whose corners all differ; its alpha goes from left to right."""
    ramp = np.linspace(0, 255, WIDTH * HEIGHT).reshape(HEIGHT, WIDTH)
    side = np.tile(np.linspace(0, 255, WIDTH), (HEIGHT, 1))
    planes = [ramp, ramp.T.reshape(HEIGHT, WIDTH), 255 - ramp, side]
    pixels = np.stack(planes, axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels, "RGBA")
    return image if mode == "RGBA" else image.convert(mode)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    """Return a picture's file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    """Return the note a camera makes of how it was held."""
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """Return a PNG with a chunk more before its pixels."""
    chunk = struct.pack(">I", len(content)) + kind + content
    chunk += struct.pack(">I", zlib.crc32(kind + content))
    place = png.index(b"IDAT") - 4
    return png[:place] + chunk + png[place:]


def claiming(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size; its pixels are not there."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    png = saved(colours(), "PNG")
    chunk = b"IHDR" + head
    rest = png[png.index(b"IHDR") + 4 + 13 + 4 :]
    return png[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + rest


def readable() -> dict[str, bytes]:
    """Return pictures that can be read, by what they are."""
    palette = colours().quantize(16)
    grey16 = Image.fromarray(
        np.linspace(0, 65535, WIDTH * HEIGHT, dtype=np.uint16).reshape(HEIGHT, WIDTH)
    )
    frames = [colours(), colours().rotate(180)]
    more = {"save_all": True, "append_images": frames[1:]}
    rgb = saved(colours(), "PNG")
    grey = saved(colours("L"), "PNG")
    found = {
        "RGB PNG": rgb,
        "RGBA PNG": saved(colours("RGBA"), "PNG"),
        "grey PNG with alpha": saved(colours("LA"), "PNG"),
        "palette PNG": saved(palette, "PNG"),
        "palette PNG, one colour clear": saved(palette, "PNG", transparency=3),
        "palette PNG, alphas": saved(
            palette, "PNG", transparency=bytes(range(0, 160, 10))
        ),
        "1-bit PNG": saved(colours("1"), "PNG"),
        "grey PNG": grey,
        "16-bit grey PNG": saved(grey16, "PNG"),
        "RGB PNG, one colour clear": with_chunk(
            rgb, b"tRNS", struct.pack(">3H", 0, 0, 255)
        ),
        "grey PNG, one grey clear": with_chunk(grey, b"tRNS", struct.pack(">H", 128)),
        "PNG with gamma": with_chunk(rgb, b"gAMA", struct.pack(">I", 220000)),
        "PNG with EXIF": saved(colours(), "PNG", exif=exif(TURNED)),
        "JPEG": saved(colours(), "JPEG"),
        "progressive JPEG": saved(colours(), "JPEG", progressive=True),
        "grey JPEG": saved(colours("L"), "JPEG"),
        "CMYK JPEG": saved(colours("CMYK"), "JPEG"),
        "GIF": saved(palette, "GIF"),
        "animated GIF": saved(frames[0], "GIF", **more),
        "GIF, one colour clear": saved(palette, "GIF", transparency=3),
        "WebP": saved(colours(), "WEBP"),
        "WebP with alpha": saved(colours("RGBA"), "WEBP"),
        "animated WebP": saved(frames[0], "WEBP", **more),
        "TIFF": saved(colours(), "TIFF"),
        "TIFF with alpha": saved(colours("RGBA"), "TIFF"),
        "CMYK TIFF": saved(colours("CMYK"), "TIFF"),
        "float TIFF": saved(colours("F"), "TIFF"),
        "TIFF with EXIF": saved(colours(), "TIFF", exif=exif(TURNED)),
        "BMP": saved(colours(), "BMP"),
        "ICO": saved(colours("RGBA"), "ICO", sizes=[(16, 16)]),
        "PPM": saved(colours(), "PPM"),
        "TGA with alpha": saved(colours("RGBA"), "TGA"),
        "JPEG 2000": saved(colours(), "JPEG2000"),
        "PNG whose pixels are damaged": rgb.replace(b"IDAT", b"IDAT\xff\xff", 1),
    }
    for value in range(10):
        jpeg = saved(colours(), "JPEG", exif=exif(value))
        found[f"JPEG turned, EXIF {value}"] = jpeg
    return found


def refused() -> dict[str, bytes]:
    """Return what is no picture that can be read."""
    png, jpeg = saved(colours(), "PNG"), saved(colours(), "JPEG")
    return {
        "cut PNG": png[:-40],
        "cut JPEG": jpeg[: len(jpeg) * 2 // 3],
        "PNG with a broken header": png[:20] + b"\xff" * 8 + png[28:],
        "text": b"no picture",
        "nothing": b"",
        "a bomb": claiming(20_000, 20_000),
        "more pixels than vLLM takes": claiming(14_000, 13_000),
        "EPS": saved(colours(), "EPS"),
    }
