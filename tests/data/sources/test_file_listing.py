"""Listing: what Pillow opens is found, each folder once, and everything else is counted."""

import os
import socket
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from tt_ray.data.sources.file_listing import by_suffix, image_suffixes, list_images
from tt_ray.terminal.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_suffixes_are_those_that_pillow_decodes() -> None:
    found = image_suffixes()
    usual = "jpg jpeg jpe jfif png apng webp bmp gif tif tiff ppm pgm pnm avif jp2 j2k tga ico mpo dds qoi pcx psd sgi"
    assert {f".{name}" for name in usual.split()} <= found
    # Known by name but not decoded, or (EPS) run as a program.
    assert (
        not {f".{name}" for name in "pdf eps ps mpg mpeg h5 hdf grib bufr wmf emf iim txt json xml npy".split()} & found
    )


def test_every_suffix_has_a_decoder() -> None:
    """A stub that Pillow learns to name, but not to decode, must not slip in."""
    for suffix, name in Image.registered_extensions().items():
        if suffix in image_suffixes():
            assert name in Image.OPEN or name == "MPO", suffix
            factory = Image.OPEN[name][0] if name in Image.OPEN else None
            assert not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile)), suffix


def test_a_plug_in_adds_its_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/0.new", "a/1.NEW", "b/0.png")
    assert list_images(tmp_path).images == ["b/0.png"]
    monkeypatch.setitem(Image.EXTENSION, ".new", "NEW")
    assert list_images(tmp_path).images == ["a/0.new", "a/1.NEW", "b/0.png"]


def test_files_and_what_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a/0.JPG", "a/1.png", "a/deep/er/2.jfif", "b/0.avif", "b/0.xml", "b/1.xml", "b/README", "b/x.heic")
    touch(tmp_path, "a/.DS_Store", ".git/config", "a/@eaDir/0.JPG", "b/@eaDir/0.png", "__MACOSX/a/0.JPG", "a/Thumbs.db")
    touch(tmp_path, "metadata.jsonl", "a/png", "a/.png", "a/jpg.")
    (tmp_path / "c").mkdir()
    listing = list_images(tmp_path)
    assert listing.images == ["a/0.JPG", "a/1.png", "a/deep/er/2.jfif", "b/0.avif"]
    files, *aside = listing.left_out()
    assert files.startswith("7 files of no known image format (2 .xml, 2 without suffix, ")
    assert all(part in files for part in ("1 .heic", "1 .db", "1 ."))
    assert set(aside) == {"3 hidden files and folders", "2 folders @eaDir", "1 folders __MACOSX", "1 empty folders"}
    assert listing.left_out(["b/x.heic", "a/png"])[0].startswith("5 files")
    assert listing.unread == ("c",)


def test_nothing_to_say(tmp_path: Path) -> None:
    touch(tmp_path, "a/0.png", "metadata.csv", "metadata.parquet")
    assert list_images(tmp_path).left_out() == ()


def test_suffixes_are_counted_the_most_frequent_first() -> None:
    names = [f"{i}.heic" for i in range(3)] + ["a.TXT", "b.txt", "c"] + [f"x.{i}" for i in range(9)]
    assert by_suffix(names) == "3 .heic, 2 .txt, 1 .0, 1 .1, 1 .2, 1 .3, 6 others"


# Class folders


def test_class_folders_of_which_nothing_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "a/0.png", "b/0.heic", "b/deep/1.heic", "b/2.txt", "c/0.mp4", "d/deep/0.png", "d/x.txt")
    (tmp_path / "e").mkdir()
    listing = list_images(tmp_path)
    assert listing.unread == ("b", "c", "e")
    with pytest.raises(UserError, match=r"no image can be read in class folder .*/b \(and in 2 more") as caught:
        listing.check_folders(tmp_path)
    assert "2 .heic, 1 .txt" in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_class_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a/0.png", "e/.hidden")
    with pytest.raises(UserError, match=r"no image can be read in class folder .*/e, which holds no files"):
        list_images(tmp_path).check_folders(tmp_path)


# Links


def paths(root: Path) -> list[str]:
    listing = list_images(root)
    assert not any("hidden" in text for text in listing.aside)
    return listing.images


@pytest.mark.parametrize("target", [".", "..", "../..", "../../..", "../b", "../b/deep", "../a", "/"])
def test_links_back_are_not_followed(target: str, tmp_path: Path) -> None:
    root = tmp_path / "images" / "train"
    touch(root, "a/0.png", "b/0.png", "b/deep/1.png")
    touch(tmp_path, "images/test/a/9.png")
    (root / "a" / "again").symlink_to(target)
    listing = list_images(root)
    assert listing.images == ["a/0.png", "b/0.png", "b/deep/1.png"]
    assert listing.left_out() == ("1 links to folders that are listed already",)


def test_linked_classes_and_images_are_read(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/cats/0.png", "elsewhere/cats/more/1.png", "elsewhere/2.png")
    root = tmp_path / "train"
    touch(root, "dog/0.png")
    (root / "cat").symlink_to(tmp_path / "elsewhere" / "cats")
    (root / "dog" / "1.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    assert paths(root) == ["cat/0.png", "cat/more/1.png", "dog/0.png", "dog/1.png"]
    (tmp_path / "linked").symlink_to(root)
    assert paths(tmp_path / "linked") == paths(root)


def test_two_links_to_one_folder_are_read_under_the_first_name(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/0.png")
    root = tmp_path / "train"
    touch(root, "z/0.png")
    for name in ("y", "x"):
        (root / name).symlink_to(tmp_path / "elsewhere")
    (root / "a").symlink_to(root / "z")
    assert paths(root) == ["x/0.png", "z/0.png"]


def test_links_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/0.png", "other/1.png")
    (tmp_path / "train/a/b").symlink_to(tmp_path / "other")
    (tmp_path / "other/c").symlink_to(tmp_path / "train")
    (tmp_path / "train/a/self.png").symlink_to("self.png")
    assert paths(tmp_path / "train") == ["a/0.png", "a/b/1.png", "a/self.png"]


def test_a_link_to_nothing_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "0.png").symlink_to("none.png")
    (tmp_path / "folder").symlink_to("none")
    listing = list_images(tmp_path)
    assert listing.images == ["0.png"] and listing.others == ["folder"]


def test_pipes_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.png")
    os.mkfifo(tmp_path / "0.png")
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("1.png")
        listing = list_images(tmp_path)
    assert listing.images == ["a.png"] and listing.left_out() == ("2 pipes, sockets or devices",)


# Names


@pytest.mark.parametrize("name", [b"k\xe4fer.png", b"k\xe4fer/0.png", b"a/k\xe4fer.txt", b"a/x.\xe4"])
def test_names_that_are_not_utf8(name: bytes, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb"):
        pass
    touch(tmp_path, "a/0.png")
    with pytest.raises(UserError) as caught:
        list_images(tmp_path)
    text = str(caught.value)
    assert "is not UTF-8" in text and name.decode("utf-8", "backslashreplace") in text and "\\xe4" in text
    text.encode()


def test_a_root_that_is_not_utf8(tmp_path: Path) -> None:
    root = os.fsdecode(os.fsencode(tmp_path) + b"/k\xe4fer")
    touch(Path(root), "a/0.png")
    with pytest.raises(UserError, match=r"k\\xe4fer is not UTF-8"):
        list_images(Path(root))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_cannot_be_listed(tmp_path: Path) -> None:
    touch(tmp_path, "a/0.png")
    (tmp_path / "a").chmod(0)
    try:
        with pytest.raises(UserError, match=r"cannot list .*/a: Permission denied"):
            list_images(tmp_path)
    finally:
        (tmp_path / "a").chmod(0o755)
