#!/usr/bin/env python3
"""Parquet files in many combinations, and what PyArrow reads in them: tests/golden/parquet/NAME.parquet and NAME.jsonl.

    tests/golden/parquet_gen.py [FOLDER]

Needs pyarrow. The rows are small and regular, so that all files together stay under 500 KB. Nulls are left out of
objects, as worker/text/parquet.h says.
"""
import json
import math
import random
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "parquet")
WORDS = "the café 日本 of 👍 and\nto in is \"you\" that it he was for on are as with".split(" ")
CODECS = ["none", "snappy", "gzip", "zstd", "lz4"]


def text(rng, most=12):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randrange(most)))


def flat(rng, n, nulls):
    def some(value):
        return None if nulls and rng.random() < 0.3 else value

    return pa.table({
        "text": pa.array([some(text(rng)) for _ in range(n)], pa.string()),
        "large": pa.array([some(text(rng, 3)) for _ in range(n)], pa.large_string()),
        "word": pa.array([some(rng.choice(WORDS)) for _ in range(n)], pa.string()),
        "i32": pa.array([some(rng.randrange(-2**31, 2**31)) for _ in range(n)], pa.int32()),
        "i64": pa.array([some(i * 1000 - rng.randrange(2**40)) for i in range(n)], pa.int64()),
        "u8": pa.array([some(rng.randrange(256)) for _ in range(n)], pa.uint8()),
        "f32": pa.array([some(rng.randrange(1000) / 8) for _ in range(n)], pa.float32()),
        "f64": pa.array([some(rng.random()) for _ in range(n)], pa.float64()),
        "flag": pa.array([some(rng.random() < 0.2) for _ in range(n)], pa.bool_()),
    })


def chats(rng, n, nulls):
    message = pa.struct([("role", pa.string()), ("content", pa.string()), ("weight", pa.float64()),
                         ("tool_calls", pa.list_(pa.struct([("name", pa.string()), ("arguments", pa.list_(pa.int64()))])))])

    def some(value):
        return None if nulls and rng.random() < 0.2 else value

    def one():
        calls = [{"name": some(rng.choice(WORDS)), "arguments": some([some(i) for i in range(rng.randrange(3))])}
                 for _ in range(rng.randrange(3))]
        return {"role": rng.choice(["user", "assistant"]), "content": some(text(rng)), "weight": some(1.0),
                "tool_calls": some(calls)}

    rows = [some([some(one()) for _ in range(rng.randrange(5))]) for _ in range(n)]
    grid = [some([some([some(text(rng, 2)) for _ in range(rng.randrange(3))]) for _ in range(rng.randrange(3))])
            for _ in range(n)]
    return pa.table({
        "messages": pa.array(rows, pa.list_(message)),
        "id": pa.array(range(n), pa.int64()),
        "grid": pa.array(grid, pa.list_(pa.list_(pa.string()))),
        "meta": pa.array([some({"source": rng.choice(WORDS), "score": some(i / 4)}) for i in range(n)],
                         pa.struct([("source", pa.string()), ("score", pa.float32())])),
        "pairs": pa.array([some([(k, some(len(k))) for k in rng.sample(WORDS, rng.randrange(3))]) for _ in range(n)],
                          pa.map_(pa.string(), pa.int32())),
    })


def required(rng, n):
    schema = pa.schema([pa.field("text", pa.string(), nullable=False), pa.field("n", pa.int64(), nullable=False),
                        pa.field("tags", pa.list_(pa.field("element", pa.string(), nullable=False)), nullable=False)])
    return pa.table([[text(rng) for _ in range(n)], list(range(n)),
                     [[rng.choice(WORDS)] * rng.randrange(3) for _ in range(n)]], schema=schema)


def plain(value, kind):
    """A value as worker/text/parquet.h gives it."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return None
    if pa.types.is_struct(kind):
        members = {f.name: plain(value[f.name], f.type) for f in kind}
        return {k: v for k, v in members.items() if v is not None}
    if pa.types.is_map(kind):
        pairs = [{"key": k, "value": plain(v, kind.item_type)} for k, v in value]
        return [{k: v for k, v in pair.items() if v is not None} for pair in pairs]
    if pa.types.is_list(kind):
        return [plain(v, kind.value_type) for v in value]
    return value


def write(name, table, **options):
    path = OUT / f"{name}.parquet"
    pq.write_table(table, path, **options)
    back = pq.read_table(path)
    assert back.num_rows == table.num_rows
    with open(OUT / f"{name}.jsonl", "w") as out:
        for row in back.to_pylist():
            members = {f.name: plain(row[f.name], f.type) for f in back.schema}
            out.write(json.dumps({k: v for k, v in members.items() if v is not None}, ensure_ascii=False) + "\n")


def pairs(rng):
    """Questions and answers, as hub data sets call them; none is empty."""
    for version in ("1.0", "2.0"):
        table = pa.table({"id": pa.array(range(60), pa.int64()), "question": [f"what is {i}? {text(rng)}" for i in range(60)],
                          "answer": [f"{i} is {text(rng)}." for i in range(60)]})
        write(f"pairs_brotli_v{version[0]}", table, compression="brotli", data_page_version=version, row_group_size=33)


def hostile():
    """Files that are to be refused, or hold a bad row, in hostile/."""
    folder = OUT / "hostile"
    folder.mkdir(exist_ok=True)

    def keep(name, table, change=None, **options):
        path = folder / name
        pq.write_table(table, path, **options)
        if change:
            path.write_bytes(change(bytearray(path.read_bytes())))

    def replaced(old, new):
        def change(data):
            assert data.count(old) == 1, data.count(old)
            return data.replace(old, new)
        return change

    keep("bomb", pa.table({"text": ["x" * 9_000_000 + str(i) for i in range(20)]}), compression="zstd",
         compression_level=19, use_dictionary=False, write_statistics=False, write_batch_size=1, data_page_size=1)
    nested = pa.array([["a"]])
    for _ in range(14):
        nested = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), nested)
    keep("deep", pa.table({"text": nested}))
    # A run of a thousand indexes of two bits; the dictionary has three entries.
    keep("index", pa.table({"text": ["a"] * 1000 + ["b", "c"]}), replaced(b"\x02\xd0\x0f\x00", b"\x02\xd0\x0f\x03"),
         compression="none")
    small = pa.table({"text": ["a fine text", "caf\u00e9!", "the end"]})

    def with_codec(number):
        """Another codec's number in the only column's metadata: field 4 of a compact struct, an i32 in zigzag form."""
        return replaced(b"\x15\x04\x16\x06", bytes([0x15, number * 2, 0x16, 0x06]))

    keep("footer", small, lambda data: data[:-8] + b"\xff\xff\xff\xff" + data[-4:])
    keep("checksum", small, replaced(b"a fine text", b"a fine test"), write_page_checksum=True, compression="none",
         use_dictionary=False, write_statistics=False)
    for name, number in (("lzo", 3), ("lz4_old", 5), ("codec_42", 42)):
        keep(name, small, with_codec(number), compression="gzip", use_dictionary=False)
    texts = [f"row {i}" for i in range(1, 101)]
    texts[2], texts[49], texts[39] = None, None, ""
    keep("bad_rows", pa.table({"text": texts}), replaced(b"row 99", b"row \xff9"), row_group_size=33, compression="none", use_dictionary=False, write_statistics=False)
    keep("fixed", pa.table({"text": pa.array([b"0123"], pa.binary(4))}))
    keep("latin1", small, replaced(b"caf\xc3\xa9!", b"caf\xe9!!"), compression="none", use_dictionary=False,
         write_statistics=False)


def main():
    OUT.mkdir(exist_ok=True)
    rng = random.Random(7)
    for codec in CODECS:
        for version in ("1.0", "2.0"):
            options = {"compression": codec, "data_page_version": version, "row_group_size": 33, "data_page_size": 300,
                       "write_batch_size": 16, "write_page_checksum": codec != "gzip"}
            write(f"flat_{codec}_v{version[0]}", flat(rng, 60, True), **options)
            write(f"chats_{codec}_v{version[0]}", chats(rng, 24, version == "1.0"), **options)
    pairs(random.Random(8))
    write("required", required(rng, 100), row_group_size=33, use_dictionary=False)
    write("no_nulls", flat(rng, 80, False), use_dictionary=False, data_page_version="2.0")
    write("all_null", pa.table({"text": pa.array([None] * 40, pa.string()), "flag": pa.array([None] * 40, pa.bool_()),
                                "list": pa.array([None] * 40, pa.list_(pa.int64()))}))
    write("one_value", pa.table({"text": pa.array(["the same"] * 1000)}))
    write("no_rows", flat(rng, 0, True))
    encodings = {"text": "DELTA_BYTE_ARRAY", "large": "DELTA_LENGTH_BYTE_ARRAY", "word": "PLAIN",
                 "i32": "DELTA_BINARY_PACKED", "i64": "DELTA_BINARY_PACKED", "u8": "BYTE_STREAM_SPLIT",
                 "f32": "BYTE_STREAM_SPLIT", "f64": "BYTE_STREAM_SPLIT", "flag": "RLE"}
    for version in ("1.0", "2.0"):
        write(f"delta_v{version[0]}", flat(rng, 200, True), use_dictionary=False, column_encoding=encodings,
              data_page_version=version, data_page_size=500, write_batch_size=32, compression="zstd")
    write("old_lists", chats(rng, 30, True), use_compliant_nested_type=False)
    write("statistics", pa.table({"text": pa.array(["x" * 9000 + str(i) for i in range(2)])}),
          write_statistics=True, data_page_version="2.0", compression="zstd")
    hostile()


if __name__ == "__main__":
    main()
