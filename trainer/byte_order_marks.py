"""What a text's first bytes say of its encoding."""

import codecs

# in this order: UTF-32's begins with UTF-16's
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def marked_encoding(head: bytes) -> str | None:
    """The encoding of a text whose first four bytes, or more, are `head`; None if it has no byte order mark."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
