"""Compare worker/text with the `tokenizers` library on many strings and several pipelines; run by hand.

  gcc ... -o tokenize tests/golden/tokenize_main.c libworker_text.a libcore.a -lonig -lutf8proc -ljansson -lnettle
  python tokenizer_compare.py ./tokenize [strings a pipeline, default 20000]

Trains a BPE of 32,000 tokens on text found on this machine, writes it in the layouts of several model families, and
compares ids (with and without special tokens), then times both on the same documents, one thread each.
"""
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import unicodedata

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

import tokenizer_gen  # noqa: E402

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


# The library normalizes by the tables of Unicode 9, utf8proc by those of Unicode 15: letters added since then that have
# a compatibility decomposition are the one known difference.
NEW_COMPATIBILITY = [*range(0x10780, 0x107C0), *range(0x1E030, 0x1E06E), *range(0xA7F2, 0xA7F5), *range(0xAB69, 0xAB6C), 0x1F16C, *range(0x1FBF0, 0x1FBFA), 0x32FF]


def documents(limit):
    roots = [pathlib.Path(p) for p in ("/usr/share/doc", "/usr/lib/python3", "/usr/lib/python3.11", "/usr/share/perl", "/usr/include")]
    total = 0
    for root in roots:
        for path in sorted(root.rglob("*")):
            if path.suffix not in ("", ".txt", ".py", ".md", ".h", ".rst", ".pl", ".pm") or not path.is_file():
                continue
            data = path.read_bytes()[:60000]
            try:
                text = data.decode()
            except UnicodeDecodeError as e:
                text = data[:e.start].decode()
            if len(text) > 200 and "\0" not in text:
                total += len(text)
                yield text
            if total > limit:
                return


def strings(count, docs, rng):
    """Varied: assembled scraps, random assigned characters, slices of documents, long runs."""
    for _ in range(count):
        kind = rng.random()
        if kind < 0.5:
            yield tokenizer_gen.sample(rng)
        elif kind < 0.65:
            chars = []
            while len(chars) < rng.randint(1, 20):
                c = chr(rng.choice([rng.randint(0, 0x2FFF), rng.randint(0, 0xFFFF), rng.randint(0x10000, 0x1FFFF)]))
                if unicodedata.category(c) not in ("Cn", "Cs", "Co") and ord(c) not in NEW_COMPATIBILITY:
                    chars.append(c)
            yield "".join(chars)
        elif kind < 0.97:
            doc = rng.choice(docs)
            start = rng.randrange(len(doc))
            yield doc[start:start + rng.randint(1, 400)]
        else:
            yield rng.choice(tokenizer_gen.PIECES) * rng.randint(1, 300)


def pipelines(base):
    def variant(name, change):
        t = Tokenizer.from_str(base.to_str())
        change(t)
        return name, t

    def gpt2(t):
        t.normalizer = None

    def prefixed(t):
        t.normalizer = None
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        t.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))

    def llama3(t):
        t.normalizer = None
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def qwen(t):
        t.normalizer = normalizers.NFC()
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"),
                                                   pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def smollm(t):
        t.normalizer = None
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])

    def splits(behavior, invert=False):
        def change(t):
            t.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
            t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s|x*|[[:punct:]]"), behavior, invert), pre_tokenizers.Split(".", "removed"),
                                                       pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)])
        return change

    def nfd(t):
        t.normalizer = normalizers.NFD()

    def nfkd(t):
        t.normalizer = normalizers.NFKD()

    yield variant("gpt2", gpt2)
    yield variant("nfc", lambda t: None)
    yield variant("roberta", prefixed)
    yield variant("llama3", llama3)
    yield variant("qwen", qwen)
    yield variant("smollm", smollm)
    yield variant("nfd", nfd)
    yield variant("nfkd", nfkd)
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        yield variant("split " + behavior, splits(behavior, behavior in ("isolated", "merged_with_next")))
    ignoring = json.loads(base.to_str())
    ignoring["model"]["ignore_merges"] = True
    ignoring["normalizer"] = None
    yield "ignore_merges", Tokenizer.from_str(json.dumps(ignoring))


def write_opt(base, folder):
    """vocab.json + merges.txt as facebook/opt has them, and the tokenizer that they mean."""
    state = json.loads(base.to_str())
    (folder / "vocab.json").write_text(json.dumps(state["model"]["vocab"], ensure_ascii=False), encoding="utf-8")
    # Training lets added tokens through as they are, so a merge may hold a bare space, which merges.txt cannot write.
    lines = ["#version: 0.2"] + [" ".join(m) for m in state["model"]["merges"] if " " not in "".join(m)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    token = {"content": "</s>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": True}
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": token, "eos_token": token, "unk_token": token, "add_bos_token": True}))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": token, "eos_token": token, "unk_token": token, "pad_token": "<pad>"}))
    t = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens(["</s>", "<pad>"])
    t.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", t.token_to_id("</s>"))])
    return t


def run(program, folder, texts, special):
    lines = "".join(json.dumps(t) + "\n" for t in texts)
    done = subprocess.run([program, *(["--special"] if special else []), str(folder)], input=lines, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{folder}: {done.stderr}")
    answers = [[int(i) for i in line.split()] if not line.startswith("!") else line for line in done.stdout.split("\n")[:-1]]
    return answers, done.stderr.strip()


def compare(program, name, tokenizer, folder, texts):
    different = 0
    for special in (False, True):
        ours, _ = run(program, folder, texts, special)
        assert len(ours) == len(texts)
        for text, mine in zip(texts, ours):
            theirs = tokenizer.encode(text, add_special_tokens=special).ids
            if mine != theirs:
                different += 1
                if different <= 3:
                    print(f"  {name}: {text!r}\n    ours   {mine}\n    theirs {theirs}")
    print(f"{name:28} {len(texts)} strings, twice: {different} differ", flush=True)
    return different


def main():
    program = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 20000
    rng = random.Random(7)
    docs = list(documents(12_000_000))
    base = tokenizer_gen.build()
    trained = Tokenizer.from_str(base.to_str())
    trainer = trainers.BpeTrainer(vocab_size=32000, special_tokens=["<s>", "</s>", "<pad>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    trained.train_from_iterator([*docs, *tokenizer_gen.SCRAPS.split("\n") * 20], trainer)
    texts = list(strings(count, docs, rng))
    bad = 0
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root) / "opt"
        folder.mkdir()
        bad += compare(program, "opt (vocab + merges)", write_opt(trained, folder), folder, texts)
        for name, tokenizer in pipelines(trained):
            folder = pathlib.Path(root) / name.replace(" ", "-")
            folder.mkdir()
            tokenizer.save(str(folder / "tokenizer.json"))
            bad += compare(program, name, tokenizer, folder, texts)
            if name in ("gpt2", "nfc", "llama3", "smollm"):
                speed(program, name, tokenizer, folder, docs)
    sys.exit(1 if bad else 0)


def speed(program, name, tokenizer, folder, docs):
    _, report = run(program, folder, docs, False)
    ours_tokens, ours_seconds = int(report.split(" tokens")[0].split()[-1]), float(report.split("encode ")[1].split()[0])
    best = None
    for encode in ("encode", "encode_batch_fast"):
        fresh = Tokenizer.from_file(str(folder / "tokenizer.json"))
        start = time.perf_counter()
        if encode == "encode":
            tokens = sum(len(fresh.encode(d, add_special_tokens=False).ids) for d in docs)
        else:
            tokens = sum(len(e.ids) for e in fresh.encode_batch_fast(docs, add_special_tokens=False))
        rate = tokens / (time.perf_counter() - start)
        best = max(best or 0, rate)
        assert tokens == ours_tokens
    rate = ours_tokens / ours_seconds
    print(f"{name:28} ours {rate / 1e6:.2f} M tokens/s, tokenizers {best / 1e6:.2f} M tokens/s, ratio {rate / best:.2f}; {report}", flush=True)


if __name__ == "__main__":
    main()
