"""Tokenizers in the layouts of model families: the components and flags that their tokenizer.json files have, around
models trained small. For tokenizer_gen.py and tokenizer_compare.py."""
import base64
import json
import pathlib
import tempfile

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

MARK = "\u2581"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
          r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def train_words(corpus, size):
    """A BPE model on SentencePiece words, with the tokens that its byte fallback needs in front."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    # Runs of spaces are words of marks alone, which training on one mark a word would not find.
    runs = [MARK * n for n in (2, 3, 4, 6, 8, 12, 16)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<unk>", "<s>", "</s>", *fallback], show_progress=False, limit_alphabet=400)
    t.train_from_iterator(corpus, trainer)
    model = json.loads(t.to_str())["model"]
    for run in runs:
        left, right = (MARK * (len(run) - len(run) // 2), MARK * (len(run) // 2))
        model["vocab"][run] = len(model["vocab"])
        if left in model["vocab"] and right in model["vocab"]:
            model["merges"].append([left, right])
    return model


def with_parts(model, normalizer=None, pre_tokenizer=None, decoder=None, post=None, added=(), **flags):
    state = json.loads(Tokenizer(models.BPE()).to_str())
    state["model"] = {**model, **flags}
    t = Tokenizer.from_str(json.dumps(state))
    if normalizer is not None:
        t.normalizer = normalizer
    if pre_tokenizer is not None:
        t.pre_tokenizer = pre_tokenizer
    if decoder is not None:
        t.decoder = decoder
    if post is not None:
        t.post_processor = post
    specials = [a for a in added if isinstance(a, str) or a.special]
    t.add_special_tokens(specials)
    t.add_tokens([a for a in added if a not in specials])
    return t


def bos_template(t="<s>", i=1):
    return processors.TemplateProcessing(single=f"{t} $A", pair=f"{t} $A {t}:1 $B:1", special_tokens=[(t, i)])


def prepend():
    return normalizers.Sequence([normalizers.Prepend(MARK), normalizers.Replace(" ", MARK)])


def fallback_decoder(*more):
    return decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *more])


PHI3_TOKENS = [AddedToken("</s>", rstrip=True, normalized=False), *(AddedToken(f"<|{n}|>", rstrip=True, special=True, normalized=False) for n in ("assistant", "user", "end")),
               AddedToken("<|endoftext|>", special=True, normalized=False)]
ODD_TOKENS = [AddedToken("<both>", lstrip=True, rstrip=True, normalized=False), AddedToken("<word>", single_word=True, normalized=False),
              AddedToken("<Norm>", normalized=True), AddedToken("<left>", lstrip=True, normalized=True), AddedToken("<right>", rstrip=True, normalized=True),
              AddedToken("<Wörd>", single_word=True, normalized=True), AddedToken("<sp>", special=True, normalized=True, lstrip=True),
              AddedToken("<end|end>", normalized=False), AddedToken("<end|", normalized=False), AddedToken(MARK * 3, normalized=False)]


def word_families(model):
    """Llama 1/2, TinyLlama, Mistral, Phi-3 and Gemma."""
    base = ["<unk>", "<s>", "</s>"]
    fallback = {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    yield "llama2", with_parts(model, prepend(), None, fallback_decoder(decoders.Strip(" ", 1, 0)), bos_template(), base, **fallback)
    yield "mistral", with_parts(model, None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), fallback_decoder(decoders.Strip(" ", 1, 0)),
                                bos_template(), base, **fallback)
    yield "phi3", with_parts(model, prepend(), None, fallback_decoder(decoders.Strip(" ", 1, 0)), None, [*base[:2], *PHI3_TOKENS], **fallback)
    yield "gemma", with_parts(model, normalizers.Replace(" ", MARK), None, fallback_decoder(), bos_template(), base, **fallback)
    yield "gemma split", with_parts(model, normalizers.Replace(" ", MARK), pre_tokenizers.Split(" ", "merged_with_previous"), fallback_decoder(), bos_template(),
                                    [*base, AddedToken("\n\n", normalized=False), AddedToken(MARK * 2, normalized=False)], **fallback)
    yield "odd tokens", with_parts(model, prepend(), None, fallback_decoder(decoders.Strip(" ", 1, 0)), bos_template(), [*base, *ODD_TOKENS], **fallback)
    yield "metaspace", with_parts(model, normalizers.NFKC(), pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace(), bos_template(),
                                  [*base, *ODD_TOKENS], **fallback)
    yield "metaspace never", with_parts(model, None, pre_tokenizers.Metaspace(prepend_scheme="never"),
                                        decoders.Metaspace(prepend_scheme="never"), bos_template(), base, **fallback)
    yield "first", with_parts(model, normalizers.Sequence([normalizers.Strip(True, False), normalizers.Nmt(), normalizers.Replace(Regex("a+"), "b")]),
                              pre_tokenizers.Metaspace(prepend_scheme="first"), decoders.Metaspace(prepend_scheme="first"), bos_template(), [*base, *ODD_TOKENS], **fallback)
    yield "unk apart", with_parts(model, prepend(), None, fallback_decoder(), bos_template(), base, unk_token="<unk>")
    yield "unk fused", with_parts(model, prepend(), None, None, bos_template(), base, unk_token="<unk>", fuse_unk=True)
    yield "unk dropped", with_parts(model, normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]),
                                    pre_tokenizers.Whitespace(), None, None, base)
    partly = {**model, "vocab": {k: v for k, v in model["vocab"].items() if k not in ("<0xE6>", "<0xF0>")}}
    yield "bytes lacking", with_parts(partly, prepend(), None, fallback_decoder(), None, base, **{**fallback, "fuse_unk": False})
    yield "ignore merges", with_parts(model, None, pre_tokenizers.Metaspace(), decoders.Metaspace(), None, base, ignore_merges=True, **fallback)
    yield "ignore merges whole", with_parts(model, prepend(), None, fallback_decoder(), None, base, ignore_merges=True, **fallback)
    yield "bert words", with_parts(model, normalizers.Replace(Regex(r"\d"), "0"), pre_tokenizers.Sequence([pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Metaspace()]),
                                   decoders.Sequence([decoders.Strip(MARK, 2, 0), decoders.Replace(Regex("[aeiou]"), "*")]), None, base, **fallback)
    yield "delimiters", with_parts(model, None, pre_tokenizers.Sequence([pre_tokenizers.CharDelimiterSplit("e"), pre_tokenizers.WhitespaceSplit(),
                                                                         pre_tokenizers.Punctuation("merged_with_previous")]), None, None, base, **fallback)


def byte_families(model):
    """The byte-level ones with stages behind ByteLevel, and those that came after GPT-2."""
    def level(prefix=False, regex=True):
        return pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)

    yield "falcon", with_parts(model, None, pre_tokenizers.Sequence([pre_tokenizers.Punctuation("contiguous"), level(), pre_tokenizers.Digits(individual_digits=False),
                                                                     pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]), decoders.ByteLevel())
    yield "bloom", with_parts(model, None, pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(" ?[^(\\s|[.,!?…。，、।۔،])]+"), "isolated"), level(regex=False)]),
                              decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False))
    yield "o200k", with_parts(model, None, pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(CL100K), "isolated"), level(regex=False)]), decoders.ByteLevel())
    yield "deepseek", with_parts(model, None, pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex("[\r\n]"), "isolated"), pre_tokenizers.Split(Regex("\\s?\\p{L}+"), "isolated"),
        pre_tokenizers.Split(Regex("\\s?\\p{P}+"), "isolated"), pre_tokenizers.Split(Regex("[一-龥ࠀ-一가-퟿]+"), "isolated"),
        pre_tokenizers.Digits(individual_digits=True), level(regex=False)]), decoders.ByteLevel())
    spaces = [AddedToken(" " * n, normalized=True) for n in (24, 12, 6, 4, 3, 2)]
    yield "neox", with_parts(model, normalizers.NFC(), level(), decoders.ByteLevel(), None, ["<s>", *spaces])


def train_unigram(text, size, folder, rules="nmt_nfkc"):
    """(pieces, precompiled charsmap) of SentencePiece's own trainer."""
    path = pathlib.Path(folder) / "corpus.txt"
    path.write_text(text, encoding="utf-8")
    custom = {"normalization_rule_tsv": rules} if str(rules).endswith(".tsv") else {"normalization_rule_name": rules}
    sentencepiece.SentencePieceTrainer.train(input=str(path), model_prefix=str(pathlib.Path(folder) / "spm"), vocab_size=size, model_type="unigram",
                                             character_coverage=0.999, minloglevel=2, hard_vocab_limit=False, num_threads=2, max_sentence_length=20000, **custom)
    raw = (pathlib.Path(folder) / "spm.model").read_bytes()
    sp = sentencepiece.SentencePieceProcessor(model_file=str(pathlib.Path(folder) / "spm.model"))
    pieces = [[sp.id_to_piece(i), sp.get_score(i)] for i in range(sp.get_piece_size())]
    return pieces, field(field(raw, 3), 2)


def field(message, wanted):
    """A length-delimited field of a protobuf message."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
    while at < len(message):
        tag = varint()
        if tag & 7 == 2:
            length = varint()
            if tag >> 3 == wanted:
                return message[at:at + length]
            at += length
        else:
            at += {1: 8, 5: 4}.get(tag & 7, 0)
            if tag & 7 == 0:
                varint()
    return b""


def unigram_families(pieces, charsmap):
    """T5, XLM-R, ALBERT and a Unigram model with byte fallback."""
    def model(unk_id=0, extra=(), **flags):
        return {"type": "Unigram", "unk_id": unk_id, "vocab": [*pieces, *extra], **flags}

    def precompiled(*more):
        return normalizers.Sequence([normalizers.Precompiled(charsmap), *more])

    ends = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 2)])
    base = ["<unk>", "<s>", "</s>"]
    yield "t5", with_parts(model(), precompiled(normalizers.Strip(False, True), normalizers.Replace(Regex(" {2,}"), MARK)), pre_tokenizers.Metaspace(), decoders.Metaspace(),
                           ends, [*base, AddedToken("<extra_id_0>", special=True, lstrip=True, rstrip=True)])
    yield "xlm-r", with_parts(model(), normalizers.Precompiled(charsmap), pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
                              decoders.Metaspace(), processors.RobertaProcessing(("</s>", 2), ("<s>", 1)), [*base, AddedToken("<mask>", special=True, lstrip=True)])
    yield "albert", with_parts(model(), normalizers.Sequence([normalizers.Replace("``", '"'), normalizers.Replace("''", '"'), normalizers.NFKD(), normalizers.StripAccents(),
                                                              normalizers.Lowercase(), normalizers.Precompiled(charsmap)]), pre_tokenizers.Metaspace(), decoders.Metaspace(), None, base)
    yield "unigram first", with_parts(model(), normalizers.Precompiled(charsmap), pre_tokenizers.Metaspace(prepend_scheme="first", split=False), decoders.Metaspace(prepend_scheme="first"),
                                      ends, [*base, *ODD_TOKENS])
    yield "unigram bytes", with_parts(model(extra=[[f"<0x{b:02X}>", 0.0] for b in range(256)], byte_fallback=True), prepend(), None,
                                      fallback_decoder(decoders.Strip(" ", 1, 0)), bos_template(), base)
    coarse = [[p, round(s)] for p, s in pieces]
    yield "unigram ties", with_parts({"type": "Unigram", "unk_id": 0, "vocab": coarse}, precompiled(normalizers.Nmt()), pre_tokenizers.Metaspace(), decoders.Metaspace(), None, base)


def charsmap_to_json(charsmap):
    return base64.b64encode(charsmap).decode()


def small_charsmap(folder):
    """A handful of rules, so that a fixture stays small."""
    path = pathlib.Path(folder) / "rules.tsv"
    rules = {"\u00a0": " ", "\t": " ", "\n": " ", "\u3000": " ", "\ufb01": "fi", "e\u0301": "\u00e9", "A\u030a": "\u00c5", "\u212b": "\u00c5", "\u00ad": "", "\u200b": "",
             "\u0001": "", "\u00bd": "1/2", "\uff41": "a", "A": "a", "B": "bb", "\u2167": "VIII", "e\u0301\u0323": "x"}
    path.write_text("".join(" ".join(f"{ord(c):X}" for c in a) + "\t" + " ".join(f"{ord(c):X}" for c in b) + "\n" for a, b in rules.items()))
    return str(path)


def temporary():
    return tempfile.TemporaryDirectory()
