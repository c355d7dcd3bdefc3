"""Make the fixtures of tests/unit/worker/text/test_tokenizer.c: run by hand with `tokenizers` and `sentencepiece`.

Trains small models on this repository's own text and on scraps of many scripts, writes tokenizer.json in the layout of
a family and cases.jsonl: one ["text", [ids with special tokens], "decoded without them", "decoded with them"] a line.
"""
import json
import pathlib
import random
import sys

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = HERE / "tokenizer"

SCRAPS = """The quick brown fox jumps over the lazy dog. I'll say we've seen they're what she'd said: it's 'fine', don't!
Der Fluß läuft über die Straße; Ärger, Öl, Übung. Où est l'été, garçon? El niño comió piñas mañana.
Привет, мир! Съешь ещё этих мягких французских булок. Ελληνικά γράμματα και τόνοι.
日本語のテキストと漢字、カタカナ。中文字符测试,你好世界。한국어 문장입니다.
العربية من اليمين إلى اليسار، שלום עולם. हिन्दी में पाठ, ไทยไม่มีช่องว่าง
for (int i = 0; i < n; i++) { sum += a[i] * 0x1F; } /* comment */ #include <stdio.h>
def f(x):\n\treturn x ** 2  # 12345 67,890.12 1e-9 ½ ² Ⅷ ٣٤٥
"""

PIECES = (
    ["a", "b", "the", " the", "The", "ing", "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'", "''", "’s", "don't"]
    + [" ", "  ", "   ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\u00a0", "\u0085", "\u2003", "\u2028", "\u3000", "\u200b",
       "\u180e", "\ufeff", "\x00", "\x1c", "\x1f", "\x7f"]
    + ["0", "7", "42", "12345", "½", "²", "Ⅷ", "٣", "๕", "𝟘", "①"]
    + ["é", "e\u0301", "ａ", "ﬁ", "İ", "ı", "ſ", "ß", "Σ", "ς", "Å", "\u212b", "A\u030a", "\u1e9b\u0323", "\u0301", "\u0323\u0301", "각", "가"]
    + ["日本", "漢字", "カ\u3099", "中", "你好", "한국", "ไทย", "हिन्दी", "العربية", "שלום", "Ж", "привет", "Ω"]
    + ["👍", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "❤️", "𠀀", "𝓐", "\U0010ffff", "\ue000"]
    + [".", ",", "!", "?!", "...", "(", ")", "[", "{", "}", "==", "!=", "->", "//", "#", "$", "%", "^", "&", "*", "_", "__", "~", "`", "\\", '"']
    + ["<s>", "</s>", "<|end|>", "<|end|", "<pad>", "<mask>", "<word>", "<Norm>", "<norm>", "<both>", "<left>", "<right>", "<Wörd>", "<sp>", "<unk>", "<end|end>", "<end|", "<0x41>", "<|user|>", "<extra_id_0>", "\u2581", "\u2581\u2581", " \u2581", "ﬁsh", "https://a.b/c?d=e&f", "x" * 45, " " * 33, "ab" * 40]
)


def sample(rng):
    kind = rng.random()
    if kind < 0.7:
        return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 14)))
    if kind < 0.85:
        return "".join(chr(rng.choice([rng.randint(0, 0x24F), rng.randint(0x300, 0x36F), rng.randint(0x2000, 0x206F), rng.randint(0x20, 0x7E),
                                       rng.randint(0x4E00, 0x9FFF), rng.randint(0x1F300, 0x1F64F)])) for _ in range(rng.randint(1, 30)))
    line = rng.choice(SCRAPS.split("\n"))
    start = rng.randint(0, max(0, len(line) - 5))
    return line[start:start + rng.randint(1, 60)]


def corpus():
    files = sorted([*ROOT.glob("*.md"), *ROOT.glob("core/*.[ch]"), *ROOT.glob("api/*.h")])
    for path in files:
        yield path.read_text(encoding="utf-8", errors="ignore")
    yield from [SCRAPS] * 20


def build(vocab_size=2000):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<s>", "</s>", "<pad>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", lstrip=True, rstrip=True)])
    tokenizer.add_tokens([AddedToken("<word>", single_word=True), AddedToken("<Norm>", normalized=True), AddedToken(" " * 5, normalized=False)])
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True),
        processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A $B", special_tokens=[("<s>", 0), ("</s>", 1)])])
    return tokenizer


def write(folder, tokenizer, count, rng, config):
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    texts = list(dict.fromkeys([*PIECES, "", *(sample(rng) for _ in range(count))]))
    with open(folder / "cases.jsonl", "w", encoding="ascii") as out:
        for text in texts:
            ids = tokenizer.encode(text, add_special_tokens=True).ids
            case = [text, ids, tokenizer.decode(ids, skip_special_tokens=True), tokenizer.decode(ids, skip_special_tokens=False)]
            out.write(json.dumps(case, separators=(",", ":")) + "\n")
    with open(folder / "tokenizer_config.json", "w") as out:
        json.dump(config, out)
        out.write("\n")
    print(f"{folder.name}: {len(texts)} cases", file=sys.stderr)


def main():
    import tokenizer_families as families  # needs sentencepiece, which comparing with the fixtures does not

    rng = random.Random(20)
    write(OUT, build(), 400, rng, {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "pad_token": "<pad>"})
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    text = list(corpus())
    byte_model = json.loads(build(700).to_str())["model"]
    write(OUT.with_name("tokenizer_falcon"), dict(families.byte_families(byte_model))["falcon"], 200, rng, {})
    words = dict(families.word_families(families.train_words(text, 1200)))
    write(OUT.with_name("tokenizer_llama"), words["odd tokens"], 400, rng, named)
    write(OUT.with_name("tokenizer_mistral"), words["mistral"], 200, rng, named)
    with families.temporary() as folder:
        pieces, charsmap = families.train_unigram("\n".join(text), 700, folder, families.small_charsmap(folder))
    unigrams = dict(families.unigram_families(pieces, charsmap))
    write(OUT.with_name("tokenizer_t5"), unigrams["t5"], 400, rng, named)
    write(OUT.with_name("tokenizer_unigram"), unigrams["unigram bytes"], 200, rng, named)


if __name__ == "__main__":
    main()
