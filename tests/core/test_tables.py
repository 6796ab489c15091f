import errno
import gzip

import h5py
import pytest

from histokit.core import tables
from histokit.core.errors import InputError
from histokit.core.files import open_hdf5, read_json, reading, unreadable
from histokit.core.tables import read_table, text_lines


def test_every_cell_is_text_without_outer_blanks(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"\xef\xbb\xbfname, fold\r\nA ,NA\r\n\r\n01,\r\n")
    table = read_table(path, ["name", "fold"])
    assert table.to_dict("list") == {"name": ["A", "01"], "fold": ["NA", ""]}


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize("zipped", [False, True])
def test_the_delimiter_and_gzip_are_told_by_content(tmp_path, delimiter, zipped):
    path = tmp_path / "t.csv"
    content = f"barcode{delimiter}x{delimiter}y\nA{delimiter}1{delimiter}2\n".encode()
    path.write_bytes(gzip.compress(content) if zipped else content)
    assert read_table(path, ["barcode", "x", "y"]).iloc[0].to_list() == ["A", "1", "2"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b\n1,2\n3\n", "line 3 of .* has 1 fields where the header has 2"),
        (b"a,b\n1,2,3\n", "line 2 of .* has 3 fields"),
        (b"a,a\n1,2\n", "has the column 'a' twice"),
        (b"b,c\n1,2\n", "has no column 'a'"),
        ("a,b\nM\u00fcller,1\n".encode("latin-1"), "is not UTF-8 text"),
        (b"\x1f\x8b\x08\x00damaged", "is not a whole list of slides"),
        (b'a,b\n"1,2\n', "is not a whole list of slides"),
        (b"a,b\n" + b"x" * 200_000 + b",1\n", "field larger than field limit"),
    ],
)
def test_a_bad_table_ends_in_one_sentence(tmp_path, content, said):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_table(path, ["a"], "list of slides")
    assert str(path) in str(caught.value)


def test_an_endless_line_is_refused_before_it_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LINE_LIMIT", 1000)
    path = tmp_path / "t.gz"
    path.write_bytes(gzip.compress(b"short\n" + b"0" * 10_000))
    with (
        pytest.raises(InputError, match=r"line 2 of .* is longer than 1,000"),
        text_lines(path) as lines,
    ):
        list(lines)


def locked() -> OSError:
    return OSError("Unable to open file (unable to lock file, errno = 11, error message = 'busy')")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "permission denied"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "is locked by another"),
        (locked(), "is locked by another"),
        (OSError(errno.ENOLCK, "No locks available"), "file system without file locks"),
        (OSError(errno.ELOOP, "Too many levels"), "loop of symbolic links"),
        (OSError(errno.EIO, "Input/output error"), "try again later"),
    ],
)
def test_harmful_advice_is_never_given_for_a_file_that_is_only_out_of_reach(error, said):
    sentence = str(unreadable("f.h5", error, "feature file", "delete it and extract again"))
    assert said in sentence
    assert "delete it" not in sentence


def test_damaged_content_gets_the_remedy_and_a_missing_file_does_not(tmp_path):
    path, error = tmp_path / "f.h5", KeyError("matrix")
    assert str(unreadable(path, error, "10x file")) == f"{path} does not exist; check the path"
    path.write_bytes(b"")
    sentence = str(unreadable(path, error, "10x file", "copy it again"))
    assert sentence == f"{path} is not a whole 10x file ('matrix'); copy it again"


def test_a_full_disk_and_our_own_errors_pass(tmp_path):
    with pytest.raises(OSError, match="No space"), reading("f", "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(InputError, match="mine"), reading("f", "file"):
        raise InputError("mine")


def test_hdf5_and_json_of_another_kind(tmp_path):
    path = tmp_path / "f.h5"
    path.write_text("no HDF5")
    with (
        pytest.raises(InputError, match="not a whole feature file"),
        open_hdf5(path, "feature file"),
    ):
        pass
    with h5py.File(path, "w") as file:
        file["features"] = [1]
    with (
        pytest.raises(InputError, match=r"not a whole feature file .*barcodes"),
        open_hdf5(path, "feature file") as file,
    ):
        file["barcodes"]
    path.write_text("[1]")
    with pytest.raises(InputError, match="holds a list"):
        read_json(path)
    with pytest.raises(InputError, match="does not exist"):
        read_json(tmp_path / "absent.json")
