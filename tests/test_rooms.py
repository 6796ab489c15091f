"""Who may import whom: the package is a house of rooms, and every arrow points down."""

import ast
from pathlib import Path

import pytest

import histokit

HOUSE = Path(histokit.__file__).parent
MAY_IMPORT = {
    "core": (),
    "ops": (),
    "data": ("core",),
    "report": ("core",),
    "extract": ("core", "data"),
    "audit": ("core", "data"),
    "models": ("core", "ops"),
    "train": ("core", "ops", "data", "models", "report"),
    "evaluate": ("core", "ops", "data", "models", "report"),
    "profile": ("core", "ops", "models", "report"),
    "maps": ("core", "ops", "data", "extract", "models", "report", "evaluate"),
}


def imported_rooms(path):
    """Rooms that a module imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("histokit"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [a.name for a in node.names]
        elif isinstance(node, ast.Import):
            yield from [a.name.split(".")[1] for a in node.names if a.name.startswith("histokit.")]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_import_only_what_lies_below(room):
    allowed = {room, "_C", "__version__", *MAY_IMPORT[room]}
    for path in sorted((HOUSE / room).rglob("*.py")):
        assert set(imported_rooms(path)) <= allowed, path


def test_every_module_lies_in_a_room():
    assert {path.name for path in HOUSE.iterdir() if path.is_dir()} - {"__pycache__"} == {
        *MAY_IMPORT
    }
    assert {path.stem for path in HOUSE.glob("*.py")} == {
        "__init__",
        "api",
        "doctor",
        "metrics",
        "reference",
    }
