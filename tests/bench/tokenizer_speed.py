#!/usr/bin/env python3
"""Tokenizer speed beside the `tokenizers` library, one thread each: tests/bench/tokenizer_speed.py BUILD

English and code that come with Python, cut into documents, through a GPT-2-style, a Llama-3-style, a SentencePiece-style
BPE and a Unigram tokenizer trained on them (kept in BUILD/bench). Ours and the library take turns; a rate is the median
of 7 rounds in millions of tokens a second.
"""
import json
import os
import pathlib
import pydoc_data.topics
import statistics
import subprocess
import sys
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ROUNDS = 7
MARK = "\u2581"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def english():
    jargon = (ROOT / "tests/hub/data/jargon-train.jsonl").read_text(encoding="utf-8").splitlines()
    return [*pydoc_data.topics.topics.values(), *(json.loads(line)["text"] for line in jargon)]


def code():
    paths = sorted(pathlib.Path(os.__file__).parent.glob("*.py"))
    return [p.read_text(encoding="utf-8", errors="ignore")[:20000] for p in paths][:200]


def byte_level(corpus):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=16000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return t


def llama3(corpus):
    t = byte_level(corpus)
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    return t


def sentencepiece(corpus):
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    t.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=16000, special_tokens=["<unk>", *fallback], show_progress=False))
    state = json.loads(t.to_str())
    state["added_tokens"] = []
    state["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    t = Tokenizer.from_str(json.dumps(state | {"pre_tokenizer": None}))
    t.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])
    t.decoder = decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return t


def unigram(corpus):
    t = Tokenizer(models.Unigram())
    t.normalizer = normalizers.NFKC()
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    t.train_from_iterator(corpus, trainers.UnigramTrainer(vocab_size=8000, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False))
    return t


def timed(run):
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def ask(program, command):
    program.stdin.write(command + "\n")
    program.stdin.flush()
    seconds, tokens = program.stdout.readline().split()
    return float(seconds), int(tokens)


def measure(name, build, folder, docs, documents):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    program = subprocess.Popen([build / "tests/bench/tokenizer_speed", folder, documents], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    times = {"encode": ([], []), "decode": ([], [])}
    for _ in range(ROUNDS):
        ours, tokens = ask(program, "encode")
        peer, encoded = timed(lambda: tokenizer.encode_batch_fast(docs, add_special_tokens=False))
        ids = [e.ids for e in encoded]
        assert sum(map(len, ids)) == tokens, name
        times["encode"][0].append(ours)
        times["encode"][1].append(peer)
        times["decode"][0].append(ask(program, "decode")[0])
        times["decode"][1].append(timed(lambda: tokenizer.decode_batch(ids, skip_special_tokens=False))[0])
    program.stdin.close()
    program.wait()
    for what, (ours, peer) in times.items():
        ours, peer = tokens / statistics.median(ours) / 1e6, tokens / statistics.median(peer) / 1e6
        print(f"bench: tokenizer-{what}-{name} ours {ours:.2f} peer {peer:.2f} unit Mtoken/s ratio {ours / peer:.2f}", flush=True)


def main():
    build = pathlib.Path(sys.argv[1])
    home = build / "bench"
    corpora = {"english": english(), "code": code()}
    every = [d for docs in corpora.values() for d in docs]
    for corpus, docs in corpora.items():
        home.mkdir(parents=True, exist_ok=True)
        (home / f"{corpus}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
        print(f"{corpus}: {len(docs)} documents, {sum(len(d.encode()) for d in docs) / 1e6:.1f} MB")
    for make in (byte_level, llama3, sentencepiece, unigram):
        folder = home / make.__name__
        if not (folder / "tokenizer.json").exists():
            folder.mkdir(exist_ok=True)
            make(every).save(str(folder / "tokenizer.json"))
        for corpus, docs in corpora.items():
            measure(f"{make.__name__}-{corpus}", build, folder, docs, home / f"{corpus}.jsonl")


if __name__ == "__main__":
    main()
