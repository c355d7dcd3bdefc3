"""Make the fixtures of tests/unit/worker/text/test_masks.c: run by hand with `transformers`.

For each family a small tokenizer in its layout and a chat template in its manner, written into chat/NAME/, and in
cases.jsonl what an example becomes: {"example": {...}, "ids": [...], "mask": [...]}, where mask says which ids are trained on. Ids and mask
of conversations are transformers' apply_chat_template with {% generation %} around what the assistant says, up to and
with the token that ends its turn; ids of texts and completions are the tokenizer's, with a mask by length, as TRL makes
them. The template in tokenizer_config.json is the unmarked one; "marked" on the first line is the other. "unmarked_end": the
last id is trained on without marks only.
"""
import json
import pathlib
import random
import shutil
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tokenizer_families import LLAMA3, MARK, fallback_decoder, prepend, train_words, with_parts
from tokenizer_gen import corpus

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "chat"

# «...» is what a marked template has {% generation %} around.
CHATML = """{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\\nBe of help.<|im_end|>\\n' }}{% endif %}\
{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}«{{ message['content'] + '<|im_end|>' }}»{{ '\\n' }}\
{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA3_CHAT = """{{- bos_token }}{% for message in messages %}{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\
{%- if message['role'] == 'assistant' %}«{{- message['content'] | trim + '<|eot_id|>' }}»{% else %}{{- message['content'] | trim + '<|eot_id|>' }}{% endif %}\
{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
INST = """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}«{{ ' ' + message['content'] | trim + eos_token }}»{% else %}{{ raise_exception('Only user and assistant speak here') }}{% endif %}{% endfor %}"""
GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system prompts here') }}{% endif %}{% for message in messages %}\
{% if message['role'] == 'assistant' %}{{ '<start_of_turn>model\\n' }}«{{ message['content'] | trim + '<end_of_turn>' }}»{{ '\\n' }}\
{% else %}{{ '<start_of_turn>' + message['role'] + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
PHI3 = """{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>\\n' }}«{{ message['content'] + '<|end|>' }}»{{ '\\n' }}\
{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""
ZEPHYR = """{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '<|assistant|>\\n' }}«{{ message['content'] + eos_token }}»{{ '\\n' }}\
{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"""

SYSTEM = ["Answer in verse.", "You are a careful assistant.\nBe short."]
USER = ["What is 12 + 30?", "  spaces around  ", "Wie heißt die Straße?", "日本語で答えて。", "Name three colours:\n- one\n- two\n\nPlease.", "x", "👍🏽 ok?", "int main(void) { return 0; }"]
ANSWER = ["42.", "The street is called \"Lange Straße\".", "赤、青、緑です。", "Red, green\nand blue.\n\nThat is all!", "no", "It ends with spaces  ", "👨‍👩‍👧 family, 1234567 times", "```c\nreturn 1;\n```\n"]
# Their first characters could join the template's last ones in a token: a cut is made there.
LEADING = ["\n\nbehind blank lines", " behind a space", "\n"]


def byte_level(pattern, added, post=None, normalizer=None):
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)] if pattern else \
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    t = Tokenizer(models.BPE())
    t.normalizer = normalizer
    t.pre_tokenizer = pre_tokenizers.Sequence(splits)
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=480, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    # Runs that templates end turns and headers with.
    t.add_special_tokens([AddedToken(a, normalized=False, special=True) for a in added])
    if post:
        t.post_processor = processors.TemplateProcessing(single=f"{post} $A", pair=f"{post} $A $B", special_tokens=[(post, t.token_to_id(post))])
    return t


def words(normalizer, pre_tokenizer, added, post=None):
    model = train_words(corpus(), 700)
    t = with_parts(model, normalizer, pre_tokenizer, fallback_decoder(decoders.Strip(" ", 1, 0)), None, added, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    if post:
        t.post_processor = processors.TemplateProcessing(single=f"{post} $A", pair=f"{post} $A $B", special_tokens=[(post, t.token_to_id(post))])
    return t


def special(*names, **flags):
    return [AddedToken(n, normalized=False, special=True, **flags) for n in names]


def families():
    """name, tokenizer, template, special tokens of the config, further tokens that end generation."""
    base = special("<unk>", "<s>", "</s>")
    yield "smollm2", byte_level(None, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]), CHATML, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}, []
    yield "qwen2", byte_level(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizer=normalizers.NFC()), CHATML, \
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, []
    yield "llama3", byte_level(LLAMA3, ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], "<|begin_of_text|>"), LLAMA3_CHAT, \
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, []
    yield "mistral", words(prepend(), None, base, "<s>"), INST, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}, []
    yield "mistral_first", words(None, pre_tokenizers.Metaspace(prepend_scheme="first", split=False), base, "<s>"), INST, {"bos_token": "<s>", "eos_token": "</s>"}, []
    yield "mistral_always", words(None, pre_tokenizers.Metaspace(prepend_scheme="always"), base, "<s>"), INST, {"bos_token": "<s>", "eos_token": "</s>"}, []
    yield "gemma", words(normalizers.Replace(" ", MARK), None, special("<unk>", "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"), "<bos>"), GEMMA, \
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}, ["<end_of_turn>"]
    yield "phi3", words(prepend(), None, [*base[:2], *special("</s>", "<|assistant|>", "<|user|>", "<|system|>", "<|end|>", rstrip=True), *special("<|endoftext|>")]), PHI3, \
        {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, ["<|end|>"]
    yield "zephyr", words(prepend(), None, base, "<s>"), ZEPHYR, {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}, []


def conversations(rng, template):
    for n in range(24):
        messages = []
        if n % 3 == 0 and "raise_exception" not in template:
            messages.append({"role": "system", "content": rng.choice(SYSTEM)})
        for _ in range(1 + n % 3):
            messages += [{"role": "user", "content": rng.choice(USER)}, {"role": "assistant", "content": rng.choice(ANSWER)}]
        if n % 8 == 7:
            messages.append({"role": "user", "content": "and?"})
        yield messages


def chat_case(t, marked, messages, example, ends):
    got = t.apply_chat_template(messages, chat_template=marked, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = got["input_ids"], got["assistant_masks"]
    # What a model is given to go on from, tokenized by itself, begins the whole.
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            start = t.apply_chat_template(messages[:i], tokenize=True, return_dict=True, add_generation_prompt=True)["input_ids"] if i else []
            assert ids[:len(start)] == start, (messages, t.convert_ids_to_tokens(ids))
    case = {"example": example, "ids": ids, "mask": mask}
    # An end-of-text token that a template writes behind a whole conversation belongs to the last answer, unless marks say otherwise.
    if ends and messages[-1]["role"] == "assistant":
        assert ids[-1] == t.eos_token_id and not mask[-1]
        mask[-1] = 1
        case["unmarked_end"] = True
    return case


def cut_case(t, plain, prompt, answer, end):
    """The answer's first characters join no token of the prompt's (byte-level: a part's ids are those of its text)."""
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    whole = t.apply_chat_template(messages, tokenize=False)
    start = t.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert whole.startswith(start)
    before, behind = (t.encode(x, add_special_tokens=False) for x in (start, whole[len(start):]))
    trained = len(behind) - behind[::-1].index(t.convert_tokens_to_ids(end))
    mask = [0] * len(before) + [1] * trained + [0] * (len(behind) - trained)
    return {"example": {"messages": messages}, "ids": before + behind, "mask": mask}


def pair_case(t, prompt, completion):
    """Prompt and completion as TRL takes them: one text, the mask by the prompt's length; the end is appended."""
    first, whole = t.encode(prompt), t.encode(prompt + completion)
    assert whole[:len(first)] == first, (prompt, completion)
    return {"example": {"prompt": prompt, "completion": completion}, "ids": whole + [t.eos_token_id], "mask": [0] * len(first) + [1] * (len(whole) + 1 - len(first))}


def continuation(t, text):
    """Ids of a text that goes on from other text: nothing is written in front of it."""
    state = json.loads(t.backend_tokenizer.to_str())
    if (state["normalizer"] or {}).get("type") == "Sequence":
        state["normalizer"]["normalizers"] = [n for n in state["normalizer"]["normalizers"] if n["type"] != "Prepend"]
    if (state["pre_tokenizer"] or {}).get("type") == "Metaspace":
        state["pre_tokenizer"]["prepend_scheme"] = "never"
    return Tokenizer.from_str(json.dumps(state)).encode(text, add_special_tokens=False).ids


def cut_pair_case(t, prompt, completion):
    """A token of the whole would lie on both sides: the prompt keeps its own ids, as a model gets them."""
    first, whole, rest = t.encode(prompt), t.encode(prompt + completion), continuation(t, completion)
    if whole[:len(first)] == first:
        return None
    ids = first + rest + [t.eos_token_id]
    return {"example": {"prompt": prompt, "completion": completion}, "ids": ids, "mask": [0] * len(first) + [1] * (len(rest) + 1)}


def text_case(t, text):
    ids = t.encode(text)
    bos = t.bos_token_id
    if len(ids) > 1 and bos is not None and ids[0] == ids[1] == bos:
        ids = ids[1:]  # the text began with it
    if ids[-1] != t.eos_token_id:
        ids = ids + [t.eos_token_id]
    return {"example": {"text": text}, "ids": ids, "mask": [1] * len(ids)}


def cases(name, t, template, marked, rng):
    end = {"phi3": "<|end|>", "gemma": "<end_of_turn>"}.get(name, t.eos_token)
    for messages in conversations(rng, template):
        yield chat_case(t, marked, messages, {"messages": messages}, name == "phi3")
    weighed = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "old", "weight": 0}, {"role": "user", "content": "y"}, {"role": "assistant", "content": "new"}]
    case = chat_case(t, marked, [{k: v for k, v in m.items() if k != "weight"} for m in weighed], {"messages": weighed}, name == "phi3")
    first_end = next(i for i, m in enumerate(case["mask"]) if m) + case["mask"][case["mask"].index(1):].index(0)
    case["mask"][:first_end] = [0] * first_end
    yield case
    if isinstance(t.backend_tokenizer.pre_tokenizer, pre_tokenizers.Sequence) and name != "llama3":
        for answer in LEADING:
            yield cut_case(t, template, "x", answer, end)
    for prompt, completion in [("Q: what?\nA:", " that"), ("one two", " three"), ("Translate:\n", "Straße, 日本"), ("", "alone"), ("end", "")]:
        yield pair_case(t, prompt, completion)
    cut = [cut_pair_case(t, *pair) for pair in [("one t", "he  other"), ("th", "en that"), ("ret", "urn 1"), ("it i", "n s"), ("a str", "uct")]]
    assert any(cut)
    yield from (c for c in cut if c)
    for text in ["A text.", "Two\n\nparagraphs, 42 ", (t.bos_token or "") + "with its own beginning", "with its own end" + t.eos_token]:
        yield text_case(t, text)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for name, backend, template, names, stops in families():
        folder = OUT / name
        folder.mkdir(parents=True)
        backend.save(str(folder / "tokenizer.json"), pretty=False)
        plain = template.replace("«", "").replace("»", "")
        marked = template.replace("«", "{% generation %}").replace("»", "{% endgeneration %}")
        (folder / "tokenizer_config.json").write_text(json.dumps({**names, "chat_template": plain}) + "\n")
        t = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=plain, **names)
        if stops:
            ids = [t.eos_token_id, *(t.convert_tokens_to_ids(s) for s in stops)]
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}) + "\n")
        rng = random.Random(name)
        count = 0
        with open(folder / "cases.jsonl", "w", encoding="ascii") as out:
            out.write(json.dumps({"marked": marked}) + "\n")
            for case in cases(name, t, template, marked, rng):
                assert len(case["ids"]) == len(case["mask"])
                out.write(json.dumps(case) + "\n")
                count += 1
        print(name, count, "cases", (folder / "tokenizer.json").stat().st_size, "bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
