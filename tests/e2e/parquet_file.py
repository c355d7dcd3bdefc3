"""Writes small Parquet files of text columns: no compression, plain encoding, one row group, no nulls.

Format: parquet.thrift of the Apache Parquet project, in Thrift's compact protocol.
"""
import struct

INT32, INT64, BINARY, LIST, STRUCT = 5, 6, 8, 9, 12
BYTE_ARRAY, DATA_PAGE, PLAIN, RLE, UTF8, REQUIRED = 6, 0, 0, 3, 0, 0


def varint(n):
    out = b""
    while n > 0x7F:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    return out + bytes([n])


def value(kind, v):
    if kind in (INT32, INT64):
        return varint(2 * v if v >= 0 else -2 * v - 1)
    if kind == BINARY:
        return varint(len(v.encode())) + v.encode()
    if kind == LIST:
        of, items = v
        head = bytes([len(items) << 4 | of]) if len(items) < 15 else bytes([0xF0 | of]) + varint(len(items))
        return head + b"".join(value(of, item) for item in items)
    out, last = b"", 0
    for number, (field_kind, field) in sorted(v.items()):
        out += bytes([number - last << 4 | field_kind]) + value(field_kind, field)
        last = number
    return out + b"\0"


def column(name, texts, offset):
    """The bytes of a column's one page, and its entry in the row group."""
    data = b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in texts)
    page = {1: (INT32, len(texts)), 2: (INT32, PLAIN), 3: (INT32, RLE), 4: (INT32, RLE)}
    header = value(STRUCT, {1: (INT32, DATA_PAGE), 2: (INT32, len(data)), 3: (INT32, len(data)), 5: (STRUCT, page)})
    size = len(header) + len(data)
    meta = {1: (INT32, BYTE_ARRAY), 2: (LIST, (INT32, [PLAIN])), 3: (LIST, (BINARY, [name])), 4: (INT32, 0),
            5: (INT64, len(texts)), 6: (INT64, size), 7: (INT64, size), 9: (INT64, offset)}
    return header + data, {2: (INT64, offset), 3: (STRUCT, meta)}


def write(path, columns):
    """columns: {name: [text, ...]}, all of the same length."""
    body, chunks = b"PAR1", []
    rows = len(next(iter(columns.values())))
    for name, texts in columns.items():
        data, chunk = column(name, texts, len(body))
        body += data
        chunks.append(chunk)
    schema = [{4: (BINARY, "schema"), 5: (INT32, len(columns))}]
    schema += [{1: (INT32, BYTE_ARRAY), 3: (INT32, REQUIRED), 4: (BINARY, n), 6: (INT32, UTF8)} for n in columns]
    group = {1: (LIST, (STRUCT, chunks)), 2: (INT64, len(body)), 3: (INT64, rows)}
    footer = value(STRUCT, {1: (INT32, 1), 2: (LIST, (STRUCT, schema)), 3: (INT64, rows),
                            4: (LIST, (STRUCT, [group]))})
    with open(path, "wb") as f:
        f.write(body + footer + struct.pack("<I", len(footer)) + b"PAR1")
