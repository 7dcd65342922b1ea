"""Folders of images: sizes, modes, classes, and every file that cannot be read is named."""

import numpy as np
import pytest
import torch
from PIL import Image

from ropewalk.evals.denoising.folder import folder_of_images
from ropewalk.evals.errors import InputError


def paint(path, mode="RGB", size=(12, 8), value=200, **options):
    """A picture of one value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = len(Image.new(mode, (1, 1)).getbands())
    Image.new(mode, size, value if bands == 1 else (value,) * bands).save(path, **options)
    return path


@pytest.fixture
def flowers(tmp_path):
    """Two classes of colour pictures in several sizes, two of them in a deeper folder."""
    for number in range(6):
        paint(tmp_path / "rose" / f"{number}.png", size=(9 + number, 30), value=10 * number)
        paint(tmp_path / "tulip" / "deep" / f"{number}.JPG", size=(40, 12), value=10 * number)
    (tmp_path / "tulip" / "notes.txt").write_text("no image")
    paint(tmp_path / ".hidden" / "x.png")
    return tmp_path


def test_sub_folders_are_classes(flowers):
    data = folder_of_images(flowers, size=8, unseen_share=0.5)
    assert data.images.shape == (12, 3, 8, 8)
    assert data.classes == ("rose", "tulip")
    assert data.labels is not None
    assert data.labels.tolist() == [0] * 6 + [1] * 6
    train, unseen = data.split
    assert data.labels[train].tolist().count(0) == data.labels[unseen].tolist().count(0) == 3
    # One value each, whatever was cut off.
    assert data.images[:6, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert (data.images[:6] == data.images[:6, :, :1, :1]).all()


def test_the_middle_of_a_picture_is_kept_upright(tmp_path):
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8] = 255  # white above black
    pixels[:, :8] = pixels[:, 24:] = 99  # cut off: the picture is twice as wide as high
    turned = Image.fromarray(pixels).rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn it by 90° clockwise to show it"
    for number in range(4):
        turned.save(tmp_path / f"{number}.png", exif=exif)
    data = folder_of_images(tmp_path, size=8, unseen_share=0.5)
    assert data.images.shape == (4, 1, 8, 8)
    assert data.labels is None
    assert not data.classes
    shown = data.images[0, 0].float()
    assert (shown[:3] > 240).all()
    assert (shown[5:] < 15).all()


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("L", 77, 77), ("1", 1, 255), ("I;16", 65535, 255), ("I;16", 257 * 77, 77)],
)
def test_grey_modes_stay_grey(tmp_path, mode, value, expected):
    for number in range(4):
        paint(tmp_path / f"{number}.png", mode, value=value)
    data = folder_of_images(tmp_path, size=4)
    assert data.shape == (1, 4, 4)
    assert (data.images == expected).all()


def test_transparent_parts_become_white(tmp_path):
    for number in range(4):
        paint(tmp_path / f"{number}.png", "RGBA", value=0)
    assert (folder_of_images(tmp_path, size=4).images == 255).all()


def test_one_coloured_picture_makes_all_of_them_coloured_unless_asked(tmp_path):
    for number in range(4):
        paint(tmp_path / f"{number}.png", "RGB" if number == 3 else "L")
    assert folder_of_images(tmp_path, size=4).shape == (3, 4, 4)
    assert folder_of_images(tmp_path, size=4, colour="grey").shape == (1, 4, 4)
    assert folder_of_images(tmp_path, size=4, colour="rgb").shape == (3, 4, 4)


def test_files_that_cannot_be_read_are_named(tmp_path):
    for number in range(4):
        paint(tmp_path / f"{number}.png", size=(64, 64))
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 of 7 images .*'[^']*(empty|text)\.") as refused:
        folder_of_images(tmp_path, size=8)
    assert "0.png" not in str(refused.value)
    with pytest.raises(InputError, match=r"3 of 7 images .*cut\.png"):
        folder_of_images(tmp_path, size=8, colour="grey")


def test_what_is_no_folder_of_images_is_refused(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        folder_of_images(tmp_path / "none", size=8)
    with pytest.raises(InputError, match=r"holds no image: no file ends in \.png, \.jpg or"):
        folder_of_images(tmp_path, size=8)
    paint(tmp_path / "a" / "1.png")
    paint(tmp_path / "2.png")
    with pytest.raises(InputError, match=r"'2\.png'.* beside sub-folders of images .'a'"):
        folder_of_images(tmp_path, size=8)


def test_more_than_memory_holds_is_refused(tmp_path):
    paint(tmp_path / "1.png")
    with pytest.raises(InputError, match=r"GiB of memory, .* smaller --image-size"):
        folder_of_images(tmp_path, size=2**20)


def test_pictures_are_read_in_the_order_of_their_paths(tmp_path):
    for number in (3, 1, 2, 0):
        paint(tmp_path / f"{number}.png", "L", value=number)
    data = folder_of_images(tmp_path, size=2)
    assert torch.equal(data.images[:, 0, 0, 0], torch.arange(4, dtype=torch.uint8))
