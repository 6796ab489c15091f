"""Images without spots and counts: a slide each, to be predicted."""

from __future__ import annotations

from pathlib import Path

from histokit.core.errors import InputError
from histokit.data.sources import Ask, SlideSource, check_slide_id

SUFFIXES = frozenset(
    ".tif .tiff .btf .png .jpg .jpeg .webp .bmp .jp2 .j2k .svs .ndpi .mrxs .scn .bif .vms .vmu "
    ".svslide .czi .dcm".split()
)


def detect_images(source: Path) -> bool:
    """An image, or a folder of which files are images."""
    return bool(_images(source))


def read_images(source: Path, ask: Ask) -> list[SlideSource]:
    """Each image a slide of its own name; its patient is itself.

    Raises:
        InputError: two images of one name.
    """
    slides: dict[str, SlideSource] = {}
    for path in _images(source):
        slide_id = check_slide_id(_stem(path), path)
        if slide_id in slides:
            raise InputError(
                f"{path.parent} holds two images {slide_id} ({slides[slide_id].image.name} and "
                f"{path.name}); slides are called by their files, so rename or move one"
            )
        slides[slide_id] = SlideSource(
            slide_id,
            ask.cancer,
            slide_id,
            "",
            path,
            ask.mpp,
            ask.origin(""),
            None,
            None,
            (path,),
        )
    return [slide for name, slide in slides.items() if ask.wants(name)]


def _images(source: Path) -> list[Path]:
    if source.is_file():
        return [source] if source.suffix.lower() in SUFFIXES else []
    return sorted(p for p in source.glob("[!.]*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _stem(path: Path) -> str:
    """The file's name without its suffix, ``.ome.tif`` being one."""
    return path.stem.removesuffix(".ome").removesuffix(".OME")
