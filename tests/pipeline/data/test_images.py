"""Pictures of every kind become uint8 RGB, and what is no picture is named."""

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import UnreadableImageError, decode_image, read_image
from pipeline.errors import PipelineError


def _encoded(picture: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


@pytest.fixture
def rgb():
    """A picture of 4 rows and 6 columns in which every pixel differs."""
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
    pixels[0, 0] = (255, 0, 10)  # red, so that a swap of channels shows
    return pixels


def test_rgb_comes_back_row_by_row_in_the_order_red_green_blue(rgb):
    decoded = decode_image(_encoded(Image.fromarray(rgb)), "a.png")
    assert decoded.shape == (4, 6, 3)
    assert decoded.dtype == np.uint8
    assert (decoded == rgb).all()


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_same_pixels(rgb, file_format):
    assert (decode_image(_encoded(Image.fromarray(rgb), file_format), "a") == rgb).all()


def test_webp_gives_the_same_pixels(rgb):
    assert (decode_image(_encoded(Image.fromarray(rgb), "WEBP", lossless=True), "a.webp") == rgb).all()


def test_grey_gives_three_equal_channels(rgb):
    grey = rgb[..., 1]
    decoded = decode_image(_encoded(Image.fromarray(grey)), "a.png")
    assert (decoded == grey[..., None]).all()
    assert decoded.shape == (4, 6, 3)


def test_black_and_white_becomes_0_and_255():
    bits = np.array([[True, False, True]])
    decoded = decode_image(_encoded(Image.fromarray(bits)), "a.png")
    assert decoded[..., 0].tolist() == [[255, 0, 255]]


def test_transparency_is_laid_over_white():
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], dtype=np.uint8)
    decoded = decode_image(_encoded(Image.fromarray(rgba)), "a.png").astype(int)
    assert decoded[0, 0].tolist() == [200, 100, 0]
    assert decoded[0, 1].tolist() == [255, 255, 255]
    assert np.abs(decoded[0, 2] - (244, 224, 204)).max() <= 1  # 0.2 of the colour, 0.8 of white


def test_grey_with_alpha_is_laid_over_white():
    grey_alpha = np.array([[[10, 255], [10, 0]]], dtype=np.uint8)
    decoded = decode_image(_encoded(Image.fromarray(grey_alpha)), "a.png")
    assert decoded[0].tolist() == [[10, 10, 10], [255, 255, 255]]


def _palette_picture() -> Image.Image:
    picture = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8)).convert("P")
    picture.putdata([0, 1, 2])
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    return picture


def test_a_palette_is_looked_up():
    decoded = decode_image(_encoded(_palette_picture()), "a.png")
    assert decoded[0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]


@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_the_transparent_colour_of_a_palette_becomes_white(file_format):
    decoded = decode_image(_encoded(_palette_picture(), file_format, transparency=1), "a")
    assert decoded[0].tolist() == [[10, 20, 30], [255, 255, 255], [70, 80, 90]]


def test_the_transparent_colour_of_an_rgb_picture_becomes_white(rgb):
    decoded = decode_image(_encoded(Image.fromarray(rgb), transparency=(255, 0, 10)), "a.png")
    assert decoded[0, 0].tolist() == [255, 255, 255]
    assert (decoded[1:] == rgb[1:]).all()


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (3, 2), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    decoded = decode_image(_encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "a.gif")
    assert (decoded == (255, 0, 0)).all()
    assert decoded.shape == (2, 3, 3)


def test_a_cmyk_jpeg_becomes_rgb():
    cmyk = Image.new("CMYK", (16, 8), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    decoded = decode_image(_encoded(cmyk, "JPEG", quality=95), "a.jpg").astype(int)
    assert decoded.shape == (8, 16, 3)
    assert np.abs(decoded - (255, 0, 0)).max() <= 8


def test_sixteen_bit_grey_is_scaled_to_eight_bits():
    wide = np.array([[0, 255, 256, 0x7FFF, 0x8000, 65535]], dtype=np.uint16)
    decoded = decode_image(_encoded(Image.fromarray(wide)), "a.png")
    assert decoded.shape == (1, 6, 3)
    assert (decoded == decoded[..., :1]).all()
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 127, 128, 255]


def test_floating_point_grey_is_clipped_to_eight_bits():
    values = np.array([[-5.0, 0.0, 100.7, 255.0, 999.0]], dtype=np.float32)
    decoded = decode_image(_encoded(Image.fromarray(values), "TIFF"), "a.tif")
    assert decoded[0, :, 0].tolist() == [0, 0, 100, 255, 255]


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [  # what a viewer does to the stored pixels, by the EXIF standard
        (1, lambda stored: stored),
        (2, lambda stored: stored[:, ::-1]),
        (3, lambda stored: stored[::-1, ::-1]),
        (4, lambda stored: stored[::-1]),
        (5, lambda stored: stored.transpose(1, 0, 2)),
        (6, lambda stored: np.rot90(stored, -1)),  # clockwise
        (7, lambda stored: stored[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda stored: np.rot90(stored)),
    ],
)
def test_the_exif_orientation_is_applied_as_a_viewer_does(rgb, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(_encoded(Image.fromarray(rgb), exif=exif), "a.png")
    assert (decoded == turn(rgb)).all()


def test_a_jpeg_with_orientation_6_is_turned():
    stored = np.zeros((16, 32, 3), dtype=np.uint8)
    stored[:, :16] = (255, 255, 255)  # stored left half white: shown, the upper half
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decode_image(_encoded(Image.fromarray(stored), "JPEG", exif=exif, quality=95), "a.jpg").astype(int)
    assert decoded.shape == (32, 16, 3)
    assert decoded[:14].min() > 240
    assert decoded[18:].max() < 15


def test_the_pixels_can_be_handed_to_torch_without_a_warning(rgb):
    decoded = decode_image(_encoded(Image.fromarray(rgb)), "a.png")
    assert decoded.flags.c_contiguous


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_truncated_picture_is_named_in_one_line(file_format):
    noise = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    content = _encoded(Image.fromarray(noise), file_format)
    with pytest.raises(UnreadableImageError) as raised:
        decode_image(content[: len(content) // 2], "birds/half.jpg")
    assert str(raised.value).startswith("birds/half.jpg: cannot be decoded")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a"])
def test_what_is_no_picture_is_named(content):
    with pytest.raises(UnreadableImageError, match=r"birds/empty.jpg: cannot be decoded") as raised:
        decode_image(content, "birds/empty.jpg")
    assert isinstance(raised.value, PipelineError)
    assert "0x" not in str(raised.value)  # an address in memory helps nobody, and differs from run to run


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP"])
def test_a_picture_with_one_damaged_byte_decodes_or_is_named(rgb, file_format):
    whole = _encoded(Image.fromarray(rgb), file_format)
    refusals = []
    for position in range(len(whole)):
        content = bytearray(whole)
        content[position] ^= 0x5A
        try:
            assert decode_image(bytes(content), "damaged").shape[2] == 3
        except UnreadableImageError as error:  # anything else that is raised fails the test
            refusals.append(str(error))
    assert refusals
    assert all(message.startswith("damaged: cannot be decoded") and "\n" not in message for message in refusals)


def test_a_header_that_claims_more_pixels_than_memory_holds_is_named(rgb):
    content = bytearray(_encoded(Image.fromarray(rgb), "BMP"))
    content[18:22] = content[22:26] = (2**30).to_bytes(4, "little")  # width and height
    with pytest.raises(UnreadableImageError, match=r"^huge\.bmp: cannot be decoded \(\w+"):
        decode_image(bytes(content), "huge.bmp")


def test_a_file_is_read_like_its_bytes(tmp_path, rgb):
    path = tmp_path / "bird.png"
    path.write_bytes(_encoded(Image.fromarray(rgb)))
    assert (read_image(path) == rgb).all()


def test_an_empty_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(UnreadableImageError, match=r"empty\.png: cannot be decoded"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(PipelineError, match=r"absent\.png: this image does not exist"):
        read_image(tmp_path / "absent.png")
