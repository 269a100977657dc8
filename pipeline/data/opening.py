"""The bytes of one data file: never of a device or a pipe, decompressed on the way, hashed as they lie.

Guarantees that `sha256` and `size_bytes` are of the very bytes that were given out, and that these come from where
files may be read, whatever was put in their place since the path was checked. Whether a file is compressed is told by
its first bytes, not its name: servers and browsers unpack files without renaming them.
"""

import hashlib
import io
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tunewright.pipeline import access
from tunewright.pipeline.data.blocks import BLOCK_BYTES
from tunewright.pipeline.errors import InvalidInput, call
from tunewright.pipeline.workspace import Workspace

COMPRESSED_SUFFIXES = (".gz", ".zst")
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


class FileBytes:
    """Reads one file once. `bytes_read` grows while it is read and counts bytes on the disk."""

    def __init__(self, path: Path, workspace: Workspace | None = None) -> None:
        self.path = path
        self._workspace = workspace
        self.bytes_read = 0
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    @property
    def size_bytes(self) -> int:
        """Bytes on the disk; valid when all were read."""
        return self.bytes_read

    def pieces(self) -> Iterator[bytes]:
        """The content, decompressed, in pieces of up to BLOCK_BYTES.

        Raises InvalidInput: `path_not_allowed`, `not_a_file`, `unreadable_file`, `broken_archive`.
        """
        with self._opened() as file:
            compression = _compression(file)
            raw = _Counted(file, self._count)
            if compression is None:
                yield from self._read(raw)
            else:
                yield from self._decompressed(raw, compression)

    @contextmanager
    def seekable(self) -> Generator[IO[bytes]]:
        """The content as a file to seek in, unpacked where it is compressed; all of it is hashed first."""
        with self._opened() as file:
            if _compression(file) is None:
                for _ in self.pieces():
                    pass
                yield file
                return
        # It has no name, and vanishes when it is closed or the process ends.
        with tempfile.TemporaryFile() as unpacked:
            for piece in self.pieces():
                unpacked.write(piece)
            unpacked.seek(0)
            yield unpacked

    def _opened(self) -> IO[bytes]:
        real = access.readable(self._workspace, self.path)
        try:
            file = access.open_real(real)
        except OSError as error:
            raise self._unreadable(error) from error
        if file is None:
            raise not_a_file(self.path)
        return file

    def _count(self, piece: bytes) -> None:
        self._hash.update(piece)
        self.bytes_read += len(piece)

    def _read(self, raw: "_Counted") -> Iterator[bytes]:
        try:
            while piece := raw.read(BLOCK_BYTES):
                yield piece
        except OSError as error:
            raise self._unreadable(error) from error

    def _decompressed(self, raw: "_Counted", compression: str) -> Iterator[bytes]:
        import pyarrow as pa

        try:
            with pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), compression) as stream:
                while piece := stream.read(BLOCK_BYTES):
                    yield piece
            # What follows the compressed data belongs to the file's hash all the same.
            while raw.read(BLOCK_BYTES):
                pass
        except (OSError, pa.ArrowInvalid) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise self._unreadable(error) from error
            raise InvalidInput(
                "broken_archive",
                f"{self.path} is {compression} that cannot be unpacked to its end: {error!s:.120}.",
                allowed="It was cut off or damaged: fetch or pack it again.",
                next=call("prepare_dataset", source=str(self.path.with_suffix(""))),
            ) from error

    def _unreadable(self, error: OSError) -> InvalidInput:
        return InvalidInput(
            "unreadable_file",
            f"{self.path} cannot be read: {error.strerror or error}.",
            allowed="Make it readable for the user that runs this server, or give a copy.",
            next=call("prepare_dataset", source=f"…/{self.path.name}"),
        )


def suffix_of(path: Path) -> str:
    """What the file holds by its name, in lower case and without what it is packed with: `.jsonl` of `A.JSONL.gz`."""
    inner = path.with_suffix("") if path.suffix.lower() in COMPRESSED_SUFFIXES else path
    return inner.suffix.lower()


def repaired(path: Path) -> str:
    """The call that makes a dataset of a repaired, unpacked copy of the file."""
    stem, suffix = path.name.partition(".")[0], suffix_of(path)
    return call("prepare_dataset", source=str(path.with_name(f"{stem}-repaired{suffix}")))


def not_a_file(path: Path) -> InvalidInput:
    return InvalidInput(
        "not_a_file",
        f"{path} is a device, a pipe or a socket; it was not opened.",
        allowed="A source is a regular file or a folder: write what comes out of it to a file first.",
        next=call("prepare_dataset", source="…/data.jsonl"),
    )


def _compression(file: IO[bytes]) -> str | None:
    head = file.read(4)
    file.seek(0)
    return next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)


class _Counted(io.RawIOBase):
    """A file whose every byte is told to `count` as it is read."""

    def __init__(self, file: IO[bytes], count: Callable[[bytes], None]) -> None:
        self._file, self._count = file, count

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        piece = self._file.read(size)
        self._count(piece)
        return piece
