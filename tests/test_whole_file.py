"""A file is replaced whole or not at all."""

import errno
import os

import pytest

from qwen_worker.whole_file import write_whole


def test_a_file_and_its_folder_are_made_and_replaced(tmp_path):
    file = tmp_path / "folder" / "file.json"
    for data in (b"first", b"second, which is longer"):
        write_whole(file, data)
        assert file.read_bytes() == data and list(file.parent.iterdir()) == [file]


def test_a_disk_that_does_not_take_it_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    file = tmp_path / "file.json"
    write_whole(file, b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, b"new")
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]
