"""A disk of a few hundred kilobytes that can really be full."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

DISK_BYTES = 512 * 1024


class SmallDisk:
    """A folder on it, and ballast to fill it with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave not one byte to others."""
        with self._ballast.open("wb") as file:
            step = 4096
            while step:
                try:
                    os.pwrite(file.fileno(), bytes(step), file.seek(0, os.SEEK_END))
                except OSError:
                    step //= 2

    def empty(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """A tmpfs; where this user may not mount one, a folder that lets os.pwrite() fail beyond its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0:
        yield SmallDisk(folder)
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return

    pwrite = os.pwrite

    def bounded(fd: int, data: bytes, offset: int) -> int:
        here = os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder))
        used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        room = DISK_BYTES - used + os.fstat(fd).st_size - offset
        if here and room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, bytes(data)[:room] if here else data, offset)

    monkeypatch.setattr(os, "pwrite", bounded)
    yield SmallDisk(folder)
