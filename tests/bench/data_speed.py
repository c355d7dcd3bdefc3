#!/usr/bin/env python3
"""The data pipeline beside the Python libraries, one thread each: tests/bench/data_speed.py BUILD

Needs transformers and pyarrow. JSON lines to packed rows of token ids: conversations through a ChatML template (without marks, so that
Castor renders each turn's beginning and end once more to find what the assistant says), and texts. The peer reads lines with json, renders with
transformers' apply_chat_template, tokenizes with `tokenizers` in batches and packs first fit in plain Python; it makes no mask. Parquet: all rows as
objects, the peer's by pyarrow's to_pylist. The two take turns; a rate is the median of 5 rounds.
"""
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import PreTrainedTokenizerFast
except ImportError as missing:
    print(f"data_speed: left out, {missing}; PEER=python with transformers and pyarrow measures it")
    sys.exit(0)

from tokenizer_speed import byte_level, english, timed  # noqa: E402

ROUNDS, ROW, BATCH, WINDOW = 5, 1024, 1000, 64
CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def paragraphs():
    return [p.strip() for text in english() for p in text.split("\n\n") if 20 < len(p) < 2000]


def conversations(rng, parts, n):
    for _ in range(n):
        messages = [{"role": "system", "content": "You are a helpful assistant."}]
        for _ in range(rng.randint(1, 3)):
            messages += [{"role": "user", "content": rng.choice(parts)}, {"role": "assistant", "content": rng.choice(parts)}]
        yield {"messages": messages}


def make_model(home):
    if not (home / "tokenizer.json").exists():
        home.mkdir(parents=True, exist_ok=True)
        t = byte_level(english())
        t.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
        t.save(str(home / "tokenizer.json"))
    (home / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}))
    return PreTrainedTokenizerFast(tokenizer_file=str(home / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML)


def pack(lengths):
    rows, room = 0, []
    for n in lengths:
        for i, left in enumerate(room):
            if left >= n:
                room[i] = left - n
                break
        else:
            rows += 1
            room.append(ROW - n)
            if len(room) > WINDOW:
                room.pop(0)
    return rows


def load_peer(tokenizer, path):
    ids = []
    with open(path, encoding="utf-8") as lines:
        batch = []
        for line in lines:
            batch.append(json.loads(line))
            if len(batch) == BATCH:
                ids += encode_peer(tokenizer, batch)
                batch = []
        ids += encode_peer(tokenizer, batch) if batch else []
    parts = [x[i:i + ROW] for x in ids for i in range(0, len(x), ROW)]
    random.Random(1).shuffle(parts)
    pack([len(x) for x in parts])
    return sum(map(len, ids))


def encode_peer(tokenizer, batch):
    if "messages" in batch[0]:
        texts = tokenizer.apply_chat_template([x["messages"] for x in batch], tokenize=False)
        return [e.ids for e in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    eos = tokenizer.eos_token_id
    return [e.ids + [eos] for e in tokenizer.backend_tokenizer.encode_batch_fast([x["text"] for x in batch], add_special_tokens=False)]


def rows_peer(path):
    n = 0
    for batch in pq.ParquetFile(path).iter_batches(batch_size=BATCH, use_threads=False):
        n += len(batch.to_pylist())
    return n


def ask(program, command, path):
    program.stdin.write(f"{command} {path}\n")
    program.stdin.flush()
    count, targets, seconds = program.stdout.readline().split()
    return float(seconds), int(count), int(targets)


def measure(program, name, command, path, peer, unit, scale):
    ours, theirs = [], []
    for _ in range(ROUNDS):
        seconds, count, _ = ask(program, command, path)
        ours.append(seconds)
        seconds, peer_count = timed(peer)
        theirs.append(seconds)
        assert abs(count - peer_count) <= count // 500, (name, count, peer_count)  # parts of one token
    ours, theirs = (count / statistics.median(x) / scale for x in (ours, theirs))
    print(f"bench: data-{name} ours {ours:.2f} peer {theirs:.2f} unit {unit} ratio {ours / theirs:.2f}", flush=True)


def main():
    build = pathlib.Path(sys.argv[1])
    home = build / "bench/data"
    tokenizer = make_model(home)
    rng = random.Random(3)
    parts = paragraphs()
    talks, texts = list(conversations(rng, parts, 6000)), [{"text": rng.choice(parts)} for _ in range(20000)]
    for name, rows in (("chats", talks), ("texts", texts)):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        pq.write_table(pa.Table.from_pylist(rows), home / f"{name}.parquet", row_group_size=2000)
    program = subprocess.Popen([build / "tests/bench/data_speed", home, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for name in ("chats", "texts"):
        lines, table = home / f"{name}.jsonl", home / f"{name}.parquet"
        measure(program, f"{name}-to-rows", "load", lines, lambda: load_peer(tokenizer, lines), "Mtoken/s", 1e6)
        measure(program, f"parquet-{name}", "rows", table, lambda: rows_peer(table), "krow/s", 1e3)
    program.stdin.close()
    program.wait()


if __name__ == "__main__":
    main()
