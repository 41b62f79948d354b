"""Rows of CSV files, compared with those of Python's csv module."""

import bz2
import csv
import gzip
import io
import lzma
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cetnet.trainer.errors import UserError
from cetnet.trainer.prepare.engine import csv_frames, csv_grammar
from cetnet.trainer.prepare.engine.chunks import frames, units
from cetnet.trainer.prepare.engine.csv_frames import line_cuts
from cetnet.trainer.prepare.engine.raw import RawFeature, RawSchema
from cetnet.trainer.prepare.engine.text_streams import is_stream

# many: pytest --hypothesis-profile thorough tests/trainer/prepare/test_csv_frames.py
EXAMPLES = max(200, settings.default.max_examples)

Rows = list[list[str]]
NAMES = ("a", "b", "c")


def spec_of(columns: int = 2, **keys: Any) -> RawSchema:
    feature = RawFeature(name="x", column="a", kind="categorical")
    return RawSchema(label="label", features=(feature,), **{"header": NAMES[:columns]} | keys)


# of chunks, of what is read closely at a time, and of what is masked at a time
sizes = st.tuples(st.integers(1, 40) | st.just(1 << 20), st.integers(1, 60), st.integers(1, 20))


def read_rows(
    content: bytes, spec: RawSchema, sizes: tuple[int, int, int], found: Rows | None = None
) -> Rows:
    """What a preparation reads of a file, into `found`: empty values are empty texts."""
    found = [] if found is None else found
    chunk_bytes, piece, cached = sizes
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_frames, "_PIECE", piece)
        patch.setattr(csv_grammar, "_CACHED", cached)
        path = Path(folder, "raw.csv")
        path.write_bytes(content)
        cuts = [] if is_stream(path, spec.encoding) else line_cuts(path, chunk_bytes, spec)
        for unit in units(path, 0, None, "csv", spec, cuts, chunk_bytes, {}, named=False):
            for frame in frames(unit, "csv", spec, chunk_bytes, named=False):
                found += [[value or "" for value in row] for row in frame.iter_rows()]
    return found


def python_rows(content: bytes, spec: RawSchema) -> Rows:
    text = content.decode("utf-8-sig" if spec.encoding == "utf-8" else spec.encoding)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=spec.delimiter,
        quotechar=spec.quote,
        escapechar=spec.escape,
        quoting=csv.QUOTE_MINIMAL if spec.quote else csv.QUOTE_NONE,
    )
    return [row for row in reader if row]


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": lambda content: gzip.compress(content, 1, mtime=0),
    "bz2": bz2.compress,
    "xz": lambda content: lzma.compress(content, preset=0),
    "zstd": lambda content: pa.compress(content, "zstd", asbytes=True),
}
ENCODINGS = {
    "utf-8": "aé日\u200b",
    "utf-8-sig": "aé",
    "latin-1": "aé",
    "cp1252": "a€",
    "utf-16": "aé日",
    "shift_jis": "aソ表",
}


@st.composite
def files(draw: st.DrawFn) -> tuple[RawSchema, Rows, bytes]:
    """A schema, rows, and what csv.writer makes of them."""
    columns = draw(st.integers(1, 3))
    delimiter = draw(st.sampled_from(",\t;| x\x01"))
    quote = draw(st.sampled_from(['"', "'", None]))
    escape = draw(st.sampled_from([None, None, "\\", "^"]))
    encoding = draw(st.sampled_from(list(ENCODINGS)))
    marks = f'{delimiter}"\\' + "'^ab 01" + ENCODINGS[encoding]
    marks += "" if quote is None and escape is None else "\n\r"
    value = st.text(st.sampled_from(marks), max_size=6) | st.sampled_from(["", "\r\n", '""', "a" * 40])
    rows = draw(st.lists(st.lists(value, min_size=columns, max_size=columns), max_size=12))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])) if quote else csv.QUOTE_NONE
    if quote is None and escape is None:
        rows = [[re.sub(f"[\r\n{re.escape(delimiter)}]", "", v) for v in row] for row in rows]
    file = io.StringIO(newline="")
    writer = csv.writer(
        file,
        delimiter=delimiter,
        quotechar=quote,
        quoting=quoting,
        escapechar=escape,
        doublequote=escape is None,
        lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
    )
    for row in rows:
        if columns == 1 and quote is None and not row[0]:
            row[0] = "-"  # csv.writer refuses it
        writer.writerow(row)
        if draw(st.integers(0, 9)) == 0:
            file.write("\n")
    text = file.getvalue()
    if draw(st.booleans()):
        text = text.removesuffix("\n").removesuffix("\r")
    spec = spec_of(columns, delimiter=delimiter, quote=quote, escape=escape, encoding=encoding)
    return spec, rows, text.encode(encoding)


@settings(max_examples=EXAMPLES)
@given(files(), st.sampled_from(list(PACKERS)), sizes)
def test_what_python_writes_is_read(
    file: tuple[RawSchema, Rows, bytes], packer: str, sizes: tuple[int, int, int]
) -> None:
    spec, rows, content = file
    # csv.writer doesn't escape all that csv.reader takes for marks.
    assume(python_rows(content, spec) == rows)
    assert read_rows(PACKERS[packer](content), spec, sizes) == rows


@st.composite
def mutated(draw: st.DrawFn) -> tuple[RawSchema, bytes]:
    """A file with bytes put in, taken out and replaced."""
    spec, _, content = draw(files())
    changed = bytearray(content)
    marks = f"{spec.delimiter}{spec.quote or ''}{spec.escape or ''}\n\r\0a".encode() + b"\xff\xc3\xef"
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(changed)))
        width = draw(st.integers(0, 2))
        changed[at : at + width] = bytes(draw(st.lists(st.sampled_from(marks), max_size=2)))
    return spec, bytes(changed)


@settings(max_examples=EXAMPLES)
@given(mutated(), st.sampled_from(list(PACKERS)), sizes)
@example((spec_of(), b'1,"5\\" disc"\n2,3\n4,"5\\" disc"\n'), "", (40, 40, 40))
@example((spec_of(), b"1,2,3\n4\n5,6\n"), "", (40, 40, 40))
@example((spec_of(), b"1,2\nx^,y\n"), "", (4, 40, 40))
@example((spec_of(), b"\xef\xbb\xbf1,2\n\xef\xbb\xbf3,4\n"), "", (7, 40, 40))
def test_damaged_text_is_what_python_reads_or_refused(
    file: tuple[RawSchema, bytes], packer: str, sizes: tuple[int, int, int]
) -> None:
    spec, content = file
    try:
        expected = python_rows(content, spec)
    except (UnicodeError, csv.Error):
        expected = None
    found: Rows = []
    try:
        read_rows(PACKERS[packer](content), spec, sizes, found)
    except UserError as caught:
        error = str(caught)
    else:
        assert found == expected
        assert all(len(row) == len(spec.header or ()) for row in found)
        return
    assert re.search(r"raw\.csv(: row \d+ \(line \d+\): | begins as utf-)", error), error
    if expected is not None:
        assert found == expected[: len(found)]  # rows before the mistake
