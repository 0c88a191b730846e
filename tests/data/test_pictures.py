# SPDX-License-Identifier: Apache-2.0
"""Pictures have the pixels that vLLM's server sees, or are refused by both."""

import numpy as np
import pytest
from vllm.multimodal.media import ImageMediaIO

from tests.data.picture_kinds import TURNED, colours, exif, readable, refused, saved
from vllm_sauce.data.pictures import decode_picture, picture_files
from vllm_sauce.errors import PictureError


def servers(content):
    """What vLLM's server makes of a picture."""
    return ImageMediaIO().load_bytes(content).media


@pytest.mark.parametrize("kind", readable())
def test_pixels_are_the_servers(kind):
    content = readable()[kind]
    found, wanted = decode_picture(content), servers(content)
    assert found.mode == wanted.mode == "RGB"
    assert np.array_equal(np.asarray(found), np.asarray(wanted))


@pytest.mark.parametrize("kind", refused())
def test_what_the_server_refuses_is_refused(kind):
    with pytest.raises(Exception):  # noqa: B017  (of vLLM's and PIL's many kinds)
        servers(refused()[kind])
    with pytest.raises(PictureError, match="^it.png is no picture that"):
        decode_picture(refused()[kind], "it.png")


def test_the_kinds_differ_from_a_plain_conversion():
    """Else the comparison would show nothing."""
    jpeg = saved(colours(), "JPEG", exif=exif(TURNED))
    assert decode_picture(jpeg).size == colours().size[::-1]
    clear = decode_picture(saved(colours("RGBA"), "PNG"))
    assert clear.getpixel((0, 0)) == (255, 255, 255)
    assert colours().getpixel((0, 0)) != (255, 255, 255)


def test_the_limit_is_vllms_own(monkeypatch):
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "100")
    with pytest.raises(PictureError, match="24 x 16 pixels, at most 100 are read"):
        decode_picture(saved(colours(), "PNG"))
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "0")
    decode_picture(saved(colours(), "PNG"))


def test_hidden_files_and_folders_are_no_pictures(tmp_path):
    for name in ("b.PNG", "a.jpg", "._a.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    for name in ("x.png", ".hidden", "in"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c.png").write_bytes(b"x")
    assert [p.name for p in picture_files(tmp_path)] == ["a.jpg", "b.PNG"]
    inner = [
        p.relative_to(tmp_path).as_posix() for p in picture_files(tmp_path, inner=True)
    ]
    assert inner == ["a.jpg", "b.PNG", "in/c.png", "x.png/c.png"]
