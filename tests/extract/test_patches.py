import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
import pyvips
from PIL import Image
from tiny_slides import picture

from histokit.core.errors import InputError
from histokit.extract.patches import (
    image_batches,
    image_thumbnail,
    open_image,
    read_window,
    resample,
    stored_batches,
    stored_microns,
    stored_thumbnail,
    top_left,
)


@pytest.mark.parametrize("kind", ["png", "jpg", "tiled.tif", "openslide.svs"])
def test_every_format_reads_the_same_windows(tmp_path, kind):
    pixels, path = picture(side=512), tmp_path / f"a.{kind}"
    image = pyvips.Image.new_from_array(pixels)
    if kind in ("png", "jpg"):
        image.write_to_file(str(path), **({"Q": 100} if kind == "jpg" else {}))
    else:
        image.tiffsave(str(path), tile=True, pyramid=True, tile_width=128, tile_height=128)
    opened = open_image(path)
    assert (opened.width, opened.height) == (512, 512)
    window = opened.read(100, 37, 60, 80)
    assert window.dtype == np.uint8
    difference = np.abs(window.astype(int) - pixels[37:117, 100:160])
    assert difference.max() <= (30 if kind == "jpg" else 0)
    assert difference.mean() < 4
    small, scale = image_thumbnail(path, 128)
    assert (small.size, scale) == ((128, 128), 0.25)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_pixel_types_become_rgb(tmp_path, mode):
    pixels = picture(side=64)
    if mode == "I;16":
        saved = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        saved = Image.fromarray(pixels).convert(mode)
    saved.save(tmp_path / "a.png")
    window = open_image(tmp_path / "a.png").read(0, 0, 64, 64)
    assert window.shape == (64, 64, 3)
    if mode in ("L", "I;16"):
        grey = np.asarray(saved) / (257 if mode == "I;16" else 1)
        np.testing.assert_allclose(window[..., 0], grey, atol=1)


def test_transparent_pixels_are_white(tmp_path):
    pixels = np.zeros((32, 32, 4), dtype=np.uint8)
    pixels[:16, 16:] = (200, 100, 150, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    window = open_image(tmp_path / "a.png").read(0, 0, 32, 32)
    assert (window[16:] == 255).all()
    assert (window[:, :16] == 255).all()
    assert (window[:16, 16:] == (200, 100, 150)).all()


def test_border_is_filled_with_white(tmp_path):
    pixels = picture(side=64)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    window = read_window(image, -10, 50, 40)
    np.testing.assert_array_equal(window[:14, 10:], pixels[50:64, :30])
    assert (window[14:] == 255).all()
    assert (window[:, :10] == 255).all()
    assert (read_window(image, 100, 100, 8) == 255).all()


def test_batches_are_centered_and_in_order(tmp_path):
    pixels = picture(side=256)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    centers = np.array([[40.0, 60.0], [100.4, 99.6], [200.0, 30.0]])
    batches = list(image_batches(tmp_path / "a.png", centers, [32], 32, 2))
    assert [batch.shape[:2] for batch in batches] == [(1, 2), (1, 1)]
    for (x, y), patch in zip(
        top_left(centers, 32), np.concatenate(batches, axis=1)[0], strict=True
    ):
        np.testing.assert_array_equal(patch, pixels[y : y + 32, x : x + 32])
    np.testing.assert_array_equal(top_left(centers, 32)[1], [84, 84])


@pytest.mark.parametrize("sides", [(31, 64, 101), (100, 33, 50)])
def test_scales_are_the_patches_of_each_side(tmp_path, sides):
    Image.fromarray(picture(side=256)).save(tmp_path / "a.png")
    centers = np.random.default_rng(0).uniform(0, 256, (20, 2))
    together = np.concatenate(list(image_batches(tmp_path / "a.png", centers, sides, 32, 7)), 1)
    for scale, side in enumerate(sides):
        (alone,) = image_batches(tmp_path / "a.png", centers, [side], 32, 20)
        np.testing.assert_array_equal(together[scale], alone[0])


def test_resampling_averages_when_it_shrinks():
    checks = np.indices((64, 64)).sum(0) % 2 * 255
    patch = np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)
    assert np.abs(resample(patch, 16).astype(int)[2:-2, 2:-2] - 127).max() <= 3


def test_full_temporary_folder(tmp_path):
    """An image that cannot be decoded for want of space is not called damaged."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    Image.fromarray(picture(side=512)).save(tmp_path / "a.png")
    code = (
        "import numpy as np, sys\n"
        "from histokit.extract.patches import image_batches\n"
        "try: list(image_batches(sys.argv[1], np.full((1, 2), 99.0), [32], 32, 1))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    try:
        answer = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a.png")],
            capture_output=True,
            text=True,
            env=os.environ | {"TMPDIR": str(disk)},
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert answer.stdout.startswith("InputError "), answer.stderr
    assert f"and {disk} has 0.0 GB free; point TMPDIR at a larger place" in answer.stdout


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_truncated_image(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(picture(side=512)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match=r"cannot be read to its end|was cut short"):
        list(image_batches(path, np.array([[480.0, 480.0]]), [32], 32, 1))


def test_missing_and_unknown_images(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_image(tmp_path / "absent.png")
    for name in ("a.png", "a.svs", "a.xyz"):
        (tmp_path / name).write_text("no image")
        with pytest.raises(InputError, match="cannot be read"):
            open_image(tmp_path / name)


def test_stored_patches_are_cropped_to_the_microns_asked_for(tmp_path):
    pixels = np.stack([picture(seed, 256) for seed in range(3)])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["img"] = pixels
    (batch,) = stored_batches(tmp_path / "a.h5", np.array([2, 0]), 112.0, 224, 8)
    np.testing.assert_array_equal(batch, pixels[[2, 0], 16:240, 16:240])
    with pytest.raises(InputError, match="holds patches of 128 um"):
        list(stored_batches(tmp_path / "a.h5", np.array([0]), 224.0, 224, 8))
    centers = np.array([[300.0, 200.0], [700.0, 200.0], [300.0, 700.0]])
    small, scale = stored_thumbnail(tmp_path / "a.h5", np.arange(3), centers, 256, longest=200)
    assert max(small.size) == 200
    shown = np.asarray(small)
    assert (shown[round(700 * scale), round(700 * scale)] == 255).all()
    assert (shown[round(200 * scale), round(300 * scale)] < 250).all()


def test_microns_of_level_0_pixels_of_stored_patches(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["img"] = np.zeros((2, 224, 224, 3), np.uint8)
        file["coords"], file["barcode"] = np.zeros((2, 2)), [b"a", b"b"]
    # 112 um of 0.28 um are 400 level-0 pixels
    assert stored_microns(tmp_path / "a.h5", 200, 0.28) == pytest.approx(56)
    with pytest.raises(InputError, match="how many level-0 pixels its patches span"):
        stored_microns(tmp_path / "a.h5", 200, None)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["img"].attrs.update({"pixel_size": 0.2, "downsample": 4.0})
    assert stored_microns(tmp_path / "a.h5", 448, None) == pytest.approx(89.6)


MEMORY = """
import sys
import numpy as np
from histokit.extract.patches import image_batches
side = int(sys.argv[2])
centers = np.random.default_rng(0).uniform(300, side - 300, (200, 2))
for batch in image_batches(sys.argv[1], centers, [160], 224, 16):
    pass
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) / 1024)
"""


def test_memory_does_not_grow_with_the_image(tmp_path):
    """Peak resident MB of reading 200 patches: 4,000 px against 16,000 px (768 MB decoded)."""
    peaks = {}
    for side in (4000, 16000):
        tile = pyvips.Image.new_from_array(picture(side=400))
        path = tmp_path / f"{side}.jpg"
        tile.replicate(side // 400, side // 400).jpegsave(str(path), Q=70)
        answer = subprocess.run(
            [sys.executable, "-c", MEMORY, str(path), str(side)],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[side] = float(answer.stdout)
    assert peaks[16000] < peaks[4000] + 100, peaks
