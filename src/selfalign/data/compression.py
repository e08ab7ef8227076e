"""Open data files that may be compressed, and refuse files that are no text by the first bytes of their content.

gzip, bzip2 and xz are in the standard library, as zstd is from Python 3.14; before, pyarrow reads zstd.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from selfalign.errors import UserError

ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zstd")
DAMAGED: tuple[type[Exception], ...] = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)
"""What the standard library raises for a damaged file, besides OSError."""

_REFUSED = {
    b"PK\x03\x04": "is a zip archive or a spreadsheet: unpack it, or save it as CSV",
    b"\xd0\xcf\x11\xe0": "is a spreadsheet: save it as CSV",
    b"7z\xbc\xaf": "is a 7z archive: unpack it",
    b"Rar!": "is a rar archive: unpack it",
    b"ARROW1": "is an Arrow file: save it as Parquet or JSON lines, or name its folder",
    b"\xff\xfe": "is UTF-16: save it as UTF-8",
    b"\xfe\xff": "is UTF-16: save it as UTF-8",
    b"version https://git-lfs": "only points to the data: run `git lfs pull` there, or download the file itself",
    b"%PDF-": "is a PDF file: save its rows as JSON lines or CSV",
    b"{\\rtf": "is a document in RTF: save its rows as JSON lines or CSV",
    b"SQLite format 3": "is an SQLite database: save its rows as JSON lines or CSV",
    b"\x04\x22\x4d\x18": "is compressed with lz4: unpack it",
    b"\x1f\x9d": "is compressed with compress: unpack it",
    b"\x5d\x00\x00": "is compressed with lzma: unpack it",
}
"""First bytes of a file -> what is wrong with it."""
_START = 512
"""Number of bytes that show what a file is."""
_PAGE = re.compile(rb"\s*<(!doctype html|html[^>]*>\s*<|\?xml )", re.IGNORECASE)


def open_data(path: Path) -> IO[bytes]:
    """Open a file for reading, and decompress it if its content is compressed, whatever its name.

    Raises:
        UserError: the file is an archive, or has another content that is no text.
        OSError: the file cannot be read.
    """
    file = path.open("rb")
    try:
        check_start(path, start := file.read(_START))
        opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
        if opener is None:
            file.seek(0)
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return cast("IO[bytes]", opener(path))


def check_start(path: Path, start: bytes, decompressed: bool = False) -> None:
    """Raise UserError if the first bytes of a file, or of its decompressed content, show that it has no rows."""
    reason = next((text for magic, text in _REFUSED.items() if start.startswith(magic)), None)
    if start[257:262] == b"ustar":
        reason = "is a tar archive: unpack it"
    elif _PAGE.match(start):
        reason = "is a web page or XML: download the file itself, or save its rows as JSON lines or CSV"
    elif decompressed and any(start.startswith(magic) for magic in _OPENERS):
        reason = "is compressed twice: unpack it"
    if reason:
        raise UserError(f"{path} {reason}")


def uncompressed_name(path: Path) -> Path:
    """Return the path without an ending that names a compression."""
    return path.with_suffix("") if path.suffix.lower() in ENDINGS else path


def _open_zstd(path: Path) -> IO[bytes]:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        pass
    else:
        return cast("IO[bytes]", zstd.open(path, "rb"))
    try:
        import pyarrow as pa
    except ImportError:
        raise UserError(
            f"{path} is compressed with zstd, which needs pyarrow: pip install 'selfalign[data]', or unpack it"
        ) from None
    stream: Any = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
    return io.BufferedReader(stream)


_OPENERS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}
"""First bytes of a file -> the function that opens it for reading."""
