"""Compare worker/text with the `tokenizers` library on many strings and many pipelines; run by hand.

  gcc ... -o tokenize tests/golden/tokenize_main.c libworker_text.a libcore.a -lonig -lutf8proc -ljansson -lnettle
  python tokenizer_compare.py ./tokenize [strings a pipeline, default 20000] [pipelines, default all]

Needs tokenizers and sentencepiece. Trains BPE and Unigram models on text found on this machine, writes them in the
layouts of the model families, and compares ids and decoded texts, with special tokens and without.
"""
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

import tokenizer_families as families  # noqa: E402
import tokenizer_gen  # noqa: E402

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
                if unicodedata.category(c) not in ("Cn", "Cs", "Co"):
                    chars.append(c)
            yield "".join(chars)
        elif kind < 0.97:
            doc = rng.choice(docs)
            start = rng.randrange(len(doc))
            yield doc[start:start + rng.randint(1, 400)]
        elif kind < 0.9997:
            yield rng.choice(tokenizer_gen.PIECES) * rng.randint(1, 300)
        else:  # 100 kB without a space
            part = "".join(rng.choice(tokenizer_gen.PIECES) for _ in range(rng.randint(1, 3000))).replace(" ", "")
            yield (part * (100_000 // max(1, len(part.encode())) + 1)) if part else ""


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
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(families.LLAMA3), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def qwen(t):
        t.normalizer = normalizers.NFC()
        t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(families.LLAMA3.replace("{1,3}", "")), "isolated"),
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


def run(program, folder, lines, special):
    """[(ids or error, text with specials, text without)] of strings and lists of ids."""
    done = subprocess.run([program, *(["--special"] if special else []), str(folder)], input="".join(json.dumps(x) + "\n" for x in lines),
                          capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{folder}: {done.stderr}")
    answers = []
    for line in done.stdout.split("\n")[:-1]:
        ids, *texts = line.split("\t")
        answers.append((line,) if line.startswith("!") else ([int(i) for i in ids.split()], *map(json.loads, texts)))
    assert len(answers) == len(lines)
    return answers


def compare(program, name, tokenizer, folder, texts, rng):
    different = 0
    size = tokenizer.get_vocab_size()
    shuffled = [[rng.randrange(size) for _ in range(rng.randint(0, 30))] for _ in range(len(texts) // 2)]
    for special in (False, True):
        for line, mine in zip([*texts, *shuffled], run(program, folder, [*texts, *shuffled], special)):
            ids = tokenizer.encode(line, add_special_tokens=special).ids if isinstance(line, str) else line
            theirs = (ids, tokenizer.decode(ids, skip_special_tokens=False), tokenizer.decode(ids, skip_special_tokens=True))
            if mine != theirs:
                different += 1
                if different <= 3:
                    print(f"  {name}: {line!r:.400}\n    ours   {mine!r:.600}\n    theirs {theirs!r:.600}")
    print(f"{name:28} {len(texts)} strings and {len(shuffled)} lists of ids, twice: {different} differ", flush=True)
    return different


def main():
    program = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 20000
    wanted = sys.argv[3:]
    rng = random.Random(7)
    docs = list(documents(4_000_000 if count >= 20000 else 1_500_000))
    trained = Tokenizer.from_str(tokenizer_gen.build().to_str())
    trainer = trainers.BpeTrainer(vocab_size=32000, special_tokens=["<s>", "</s>", "<pad>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    corpus = [*docs, *tokenizer_gen.SCRAPS.split("\n") * 20]
    trained.train_from_iterator(corpus, trainer)
    texts = list(strings(count, docs, rng))
    bad = 0
    with tempfile.TemporaryDirectory() as root:
        folder = pathlib.Path(root) / "opt"
        folder.mkdir()
        every = [("opt (vocab + merges)", write_opt(trained, folder), folder)]
        pieces, charsmap = families.train_unigram("\n".join(corpus)[:2_000_000], 8000, root)
        for name, tokenizer in [*pipelines(trained), *families.byte_families(json.loads(trained.to_str())["model"]),
                                *families.word_families(families.train_words(corpus, 16000)), *families.unigram_families(pieces, charsmap)]:
            folder = pathlib.Path(root) / name.replace(" ", "-")
            folder.mkdir()
            tokenizer.save(str(folder / "tokenizer.json"))
            every.append((name, tokenizer, folder))
        for name, tokenizer, folder in every:
            if not wanted or name in wanted:
                bad += compare(program, name, tokenizer, folder, texts, rng)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
