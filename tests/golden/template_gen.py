"""Make the fixture of tests/unit/worker/text/test_template.c: run by hand with `transformers` installed.

Renders conversations through templates in the manner of several model families, and many small pieces of the language, as
transformers' apply_chat_template does, and writes template/cases.jsonl. A line is ["template", name, text] or
["case", name or text, messages, tools, add_generation_prompt, rendering or null where it is refused, assistant spans].
"""
import json
import pathlib
import random
import sys

from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).resolve().parent
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

TEMPLATES = {
    "chatml": """{% for message in messages %}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "chatml_marked": """{%- for message in messages -%}
  {%- if loop.first and message.role != 'system' -%}
    {{- '<|im_start|>system\\nBe of help.<|im_end|>\\n' -}}
  {%- endif -%}
  {{- '<|im_start|>' ~ message.role ~ '\\n' -}}
  {%- if message.role == 'assistant' -%}
    {% generation %}{{ message.content }}<|im_end|>{% endgeneration %}
  {%- else -%}
    {{- message.content }}<|im_end|>
  {%- endif %}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
""",
    "header": """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
    {%- set rest = messages %}
{%- endif %}
<|start_header_id|>system<|end_header_id|>

{% if tools is not none %}
Tools at hand:
{% for tool in tools %}
{{ tool | tojson(indent=4) }}

{% endfor %}
{% endif %}
{{- system_message }}<|eot_id|>
{%- for message in rest %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception('One call at a time, please') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' }}{{ call.arguments | tojson }}{{- '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "zephyr": """{% for m in messages %}
{% if m['role'] == 'user' %}
{{ '<|user|>\\n' + m['content'] + eos_token }}
{% elif m['role'] == 'system' %}
{{ '<|system|>\\n' + m['content'] + eos_token }}
{% elif m['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + m['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system prompts here') }}{% endif %}
{%- for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must take turns') }}{% endif %}
{%- if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}""",
    "inst": """{%- set ns = namespace(system='', index=0) -%}
{%- for message in messages if message.role == 'system' -%}
    {%- set ns.system = ns.system ~ message.content ~ '\\n\\n' -%}
{%- endfor -%}
{%- set talk = messages | rejectattr('role', 'equalto', 'system') | list -%}
{{ bos_token }}
{%- for message in talk -%}
    {%- if message['role'] == 'user' -%}
        {%- if ns.index is not even -%}{{ raise_exception('user and assistant must alternate: ' ~ loop.index) }}{%- endif -%}
        {{ ' [INST] ' if not loop.first else '[INST] ' }}{{ (ns.system if loop.last else '') + message['content'] }} [/INST]
    {%- elif message['role'] == 'assistant' -%}
        {{ ' ' ~ message.content | trim ~ eos_token }}
    {%- else -%}
        {{ raise_exception('unknown role ' + message.role) }}
    {%- endif -%}
    {%- set ns.index = ns.index + 1 -%}
{%- endfor -%}""",
    "macros": """{%- macro show(name, value, depth=0) -%}
{{ '  ' * depth }}{{ name }}:
{%- if value is mapping %}
{% for k, v in value | dictsort %}
{{ show(k, v, depth + 1) }}
{%- endfor %}
{%- elif value is string %} {{ value | tojson }}
{% elif value is iterable %} {{ value | join('; ') }}
{% else %} {{ value }}
{% endif %}
{%- endmacro -%}
{%- for message in messages -%}
<|{{ message.role | upper }}|>
{{ show('content', message.content) }}
{%- for call in message.tool_calls | default([], true) -%}
{{ show('call', call) }}
{%- endfor -%}
{%- endfor -%}
{%- for tool in tools or [] %}{{ show(tool.function.name, tool.function.parameters.properties | default({})) }}{% endfor -%}
{{ '<|ASSISTANT|>' if add_generation_prompt }}""",
}

NASTY = ["", " ", "\n", "  padded  ", "\n\nlines\n\n", "a\r\nb", "tab\there", "{{ 7 * 7 }}", "{% for x in y %}", "'\"\\", "</s>", "<|im_end|>",
         "日本語", "é e\u0301", "👨‍👩‍👧", "\u00a0x\u00a0", "\u2028", "{\"a\": 1}", "<b>&amp;</b>", "x" * 300, "ß İ ı ſ", "\u200b", "\x01\x1f"]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tell \"the\" weather <here>", "parameters": {"type": "object", "properties": {
    "city": {"type": "string", "description": "größte Stadt"}, "days": {"type": "integer", "enum": [1, 2.5, None, True]}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "stop", "parameters": {}}}]


def conversations(rng, count):
    for _ in range(count):
        messages = []
        if rng.random() < 0.4:
            messages.append({"role": "system", "content": rng.choice(NASTY)})
        for turn in range(rng.randint(1, 3)):
            messages.append({"role": "user", "content": rng.choice(NASTY) + rng.choice(NASTY)})
            if turn < 2 or rng.random() < 0.7:
                if rng.random() < 0.15:
                    messages.append({"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": {
                        "name": "weather", "arguments": {"city": rng.choice(NASTY), "days": rng.choice([1, 0.1, 1e20, 1e-7, None])}}}]})
                    messages.append({"role": "tool", "tool_call_id": "c1", "content": rng.choice(NASTY)})
                else:
                    messages.append({"role": "assistant", "content": rng.choice(NASTY)})
        if rng.random() < 0.05:
            rng.shuffle(messages)
        yield messages, rng.choice([None, None, TOOLS, TOOLS[:1]]), rng.random() < 0.5


# Pieces of the language, each a template; `messages` is a short conversation.
PIECES = r"""
{{ 1 + 2 * 3 - 4 // 3 }}|{{ 7 % 3 }}|{{ -7 // 2 }}|{{ -7 % 3 }}|{{ 2 ** 10 }}|{{ 7 / 2 }}|{{ 1e3 }}|{{ 1.5 + 1 }}|{{ 0.1 + 0.2 }}
{{ 'a' ~ 1 ~ none ~ true ~ 1.0 }}|{{ 'a' 'b' }}|{{ "it's" }}|{{ 'x' * 3 }}|{{ 3 * 'ab' }}|{{ [1, 2] * 2 }}|{{ [1] + [2] }}
{{ 1 < 2 < 3 }}|{{ 1 < 3 < 2 }}|{{ 1 == 1.0 }}|{{ 'a' < 'b' }}|{{ not 1 == 2 }}|{{ 'a' in 'abc' }}|{{ 4 not in [1, 2] }}|{{ 'role' in messages[0] }}
{{ true and 'x' }}|{{ '' or 'y' }}|{{ none or 0 or [] }}|{{ not '' }}|{{ 1 if 0 else 2 }}|{{ 1 if 0 }}|{{ (1 if true else 2) + 1 }}
{{ [1, 'a', none, true, 1.0, [], {}, {'k': 'v'}, (1, 2), (1,), ()] }}|{{ {'a': 1, 2: "it's", 'q': "\"'"} }}|{{ 'a\nb' }}|{{ ['a\nb\t\\'] }}
{{ 'hello'[1] }}|{{ 'hello'[-1] }}|{{ 'hello'[1:3] }}|{{ 'hello'[::-1] }}|{{ 'hello'[:-1] }}|{{ 'hello'[-3:] }}|{{ 'hello'[::2] }}|{{ 'hello'[9] }}|{{ 'héllo'[1:2] }}
{{ [1,2,3,4][1:] }}|{{ [1,2,3,4][::-1] }}|{{ [1,2,3,4][-2:] }}|{{ [1,2,3,4][10:] }}|{{ [1,2,3][5] }}|{{ (1,2,3)[1:] }}|{{ [1,2,3,4,5][4:1:-2] }}|{{ [1,2,3][:-9:-1] }}
{{ undefined_name }}|{{ undefined_name is defined }}|{{ messages[0].nothing is defined }}|{{ messages[0].nothing }}|{{ none.x is defined }}|{{ undefined_name | default('d') }}|{{ '' | default('d', true) }}|{{ '' | d('x') }}
{{ undefined_name.x }}
{{ undefined_name + 1 }}
{{ undefined_name ~ 1 }}|{{ undefined_name | length }}|{{ 'a' in undefined_name }}|{{ undefined_name == other }}|{{ undefined_name == none }}|{% for x in undefined_name %}x{% else %}none{% endfor %}
{{ 1 + 'a' }}
{{ 'a' + 1 }}
{{ none < 1 }}
{{ 1 / 0 }}
{{ 3 is odd }}|{{ 4 is even }}|{{ 9 is divisibleby 3 }}|{{ 9 is divisibleby(4) }}|{{ 'a' is string }}|{{ 1 is number }}|{{ true is number }}|{{ true is integer }}|{{ 1.0 is float }}|{{ true is boolean }}|{{ none is none }}
{{ {} is mapping }}|{{ [] is iterable }}|{{ 'a' is iterable }}|{{ 1 is iterable }}|{{ [] is sequence }}|{{ {} is sequence }}|{{ true is true }}|{{ 1 is true }}|{{ false is false }}|{{ 1 is not none }}|{{ 1 is eq 1 }}|{{ 1 is sameas 1 }}|{{ 2 is gt 1 }}|{{ 2 is in [1, 2] }}|{{ not 2 is in [1] }}
{{ 'a' is upper }}
{{ 1 is unknown_test }}
{{ 1 | unknown_filter }}
{{ unknown_function() }}
{{ 'abc'.unknown() }}
{{ ' a '.strip() }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcba'.strip('ab') }}|{{ 'a,b,,c'.split(',') }}|{{ ' a  b '.split() }}|{{ 'a b c'.split(' ', 1) }}|{{ 'a b c'.split(none, 1) }}|{{ 'a-b-c'.rsplit('-', 1) }}|{{ ''.split(',') }}|{{ ''.split() }}
{{ 'a\nb\r\nc\n'.splitlines() }}|{{ 'abc'.startswith('ab') }}|{{ 'abc'.endswith('bc') }}|{{ 'abc'.startswith(('x', 'a')) }}|{{ 'abab'.replace('a', 'x') }}|{{ 'abab'.replace('a', 'x', 1) }}|{{ 'aB'.upper() }}|{{ 'aB'.lower() }}|{{ "they're bill's".title() }}|{{ 'aBC d'.capitalize() }}
{{ ','.join(['a', 'b']) }}|{{ 'banana'.find('n') }}|{{ 'banana'.find('x') }}|{{ 'banana'.count('an') }}|{{ '12'.isdigit() }}|{{ ''.isdigit() }}|{{ 'ab'.isalpha() }}|{{ 'straße'.upper() }}|{{ 'ÀÉ'.lower() }}|{{ 'abc'.removeprefix('a') }}|{{ 'abc'.removesuffix('c') }}
{{ ' x ' | trim }}|{{ 'xyx' | trim('x') }}|{{ [1, 2] | join(', ') }}|{{ [1, 2] | join }}|{{ messages | map(attribute='role') | join(',') }}|{{ 'abc' | length }}|{{ [1] | count }}|{{ 'héé' | length }}|{{ 'abc' | first }}|{{ [1, 2] | last }}|{{ [] | first }}
{{ 'aB' | upper }}|{{ 'aB' | lower }}|{{ 'aBc de' | title }}|{{ 'aBC' | capitalize }}|{{ 'a.b' | replace('.', '-') }}|{{ 1 | string + 'x' }}|{{ '12' | int + 1 }}|{{ 'x' | int }}|{{ 'x' | int(5) }}|{{ '1.9' | int }}|{{ 1.9 | int }}|{{ '1.5' | float }}|{{ -3 | abs }}|{{ 2 | float }}
{{ [3, 1, 2] | sort }}|{{ ['b', 'A', 'c'] | sort }}|{{ ['b', 'A'] | sort(case_sensitive=true) }}|{{ [1, 2] | sort(reverse=true) }}|{{ {'b': 1, 'A': 2} | dictsort }}|{{ {'b': 1, 'a': 2} | dictsort(by='value') }}|{{ [1, 2, 1] | unique | list }}|{{ 'abc' | reverse }}|{{ [1, 2] | reverse | list }}|{{ [1, 3] | max }}|{{ [3, 1] | min }}|{{ 'abc' | list }}
{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|{{ messages | rejectattr('role', 'eq', 'user') | map(attribute='content') | list }}|{{ [0, 1, '', 'a'] | select | list }}|{{ [1, 2, 3] | select('odd') | list }}|{{ [1, 2, 3] | reject('gt', 1) | list }}|{{ ['a', 'b'] | map('upper') | list }}|{{ messages | selectattr('nothing') | list }}|{{ messages | selectattr('nothing', 'defined') | list }}
{{ {'a': 1}.items() | list }}|{{ {'a': 1} | items | list }}|{{ {'a': 1}.keys() | list }}|{{ {'a': 1}.values() | list }}|{{ {'a': 1}.get('a') }}|{{ {'a': 1}.get('b') }}|{{ {'a': 1}.get('b', 2) }}|{{ {'a': 1} | length }}|{{ {'a': 1} | list }}
{{ {'a': [1, none, true, 'x"y'], 'b': {}} | tojson }}|{{ {'a': [1, {'b': []}]} | tojson(indent=2) }}|{{ 'é<>&\'' | tojson }}|{{ 1.0 | tojson }}|{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}|{{ [] | tojson(indent=2) }}|{{ '\u0001\u007f' | tojson }}
{{ 'a\nb\n\nc' | indent }}|{{ 'a\nb' | indent(2, true) }}|{{ 'a\n\nb' | indent(2, blank=true) }}|{{ range(3) | list }}|{{ range(1, 7, 2) | list }}|{{ range(3, 0, -1) | list }}|{{ dict(a=1, b=2) }}|{{ 1_000 }}|{{ true }}|{{ True }}|{{ None }}
{% for x in [1, 2, 3] %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('o', 'e') }};{% endfor %}
{% for a, b in [(1, 2), [3, 4]] %}{{ a }}-{{ b }} {% endfor %}|{% for k, v in {'x': 1}.items() %}{{ k }}={{ v }}{% endfor %}|{% for c in 'aé' %}[{{ c }}]{% endfor %}|{% for k in {'x': 1} %}{{ k }}{% endfor %}
{% for x in [1, 2, 3, 4] if x is even %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% else %}no{% endfor %}|{% for x in [] %}{% else %}empty{% endfor %}|{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}|{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in [1] %}{% for y in [1, 2] %}{{ loop.depth }}{{ loop.index }}{% endfor %}{{ loop.index }}{% endfor %}|{% set x = 5 %}{% for i in [1, 2] %}{% set x = i %}{{ x }}{% endfor %}{{ x }}|{% if true %}{% set x = 6 %}{% endif %}{{ x }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}|{% set t = (1, 2) %}{{ t }}|{% set t = 1, 2 %}{{ t }}|{% set s %}block {{ a }}{% endset %}{{ s | upper }}|{% set s | upper | trim %} x {% endset %}[{{ s }}]|{% filter upper %}ab{{ 'c' }}{% endfilter %}
{% set ns = namespace(x=1, y='a') %}{% for i in range(3) %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}|{% set ns.z = 3 %}{{ ns.z }}|{% set ns.x, q = 1, 2 %}{{ ns.x }}{{ q }}
{% set d = {'a': 1} %}{% set d.a = 2 %}
{% set l = [] %}{{ l.append(1) }}
{% set d = {} %}{{ d.update({'a': 1}) }}
{% macro m(a, b='x', c=a) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(1, c=3) }}{{ m(b=2, a=1) }}{{ m() }}
{% macro m(a) %}{{ a }}{% if a > 0 %}{{ m(a - 1) }}{% endif %}{% endmacro %}{{ m(5) }}|{% macro outer() %}{{ m(1) }}{% endmacro %}{{ outer() | length }}|{% macro w() %}({{ caller() }}){% endmacro %}{% call w() %}in{% endcall %}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}
{{ raise_exception('No.') }}
{{ strftime_now('x') }}|{{ bos_token }}{{ eos_token }}{{ unk_token }}|{{ tools }}|{{ documents is none }}|{{ add_generation_prompt }}
a{# comment #}b{#- c -#}  c|{% raw %}{{ x }}{% if %}{% endraw %}|{%- raw -%} y {%- endraw -%} z
{{ (1, 2) + (3,) }}|{{ [[1, 2], [3]] | map('first') | list }}|{{ [1, 2] == [1, 2] }}|{{ {'a': 1} == {'a': 1.0} }}|{{ (1, 2) == [1, 2] }}|{{ 'a' == 1 }}|{{ [1, [2]] < [1, [3]] }}|{{ 1 == true }}
{{ messages[0]['content'][0:2] + '.' if messages | length > 1 and messages[1].role == 'assistant' else 'no' }}|{{ messages[-1].role }}|{{ messages | last | tojson }}|{{ messages.0.role }}
{{ - 3 | abs }}|{{ -3 | string | length }}|{{ 2 * -3 }}|{{ +3 }}|{{ 2 ** 3 ** 2 }}|{{ 1 - 1 - 1 }}|{{ 'a' ~ 1 + 2 }}|{{ 7 - 2 ~ 'x' }}|{{ not true or true }}|{{ 'x' if not false and true else 'y' }}
{{ 1e16 }}|{{ 1e15 }}|{{ 123456789.0 }}|{{ 0.0001 }}|{{ 0.00001 }}|{{ 1e100 }}|{{ 1.0e-10 }}|{{ 3.14159265358979 }}|{{ 2.5 // 1 }}|{{ 100000000000000000 }}|{{ -0.0 }}
{% if 'x' is string and messages is iterable and messages is not mapping %}yes{% elif true %}no{% endif %}|{% if false %}{% elif none %}{% else %}else{% endif %}|{% if not messages %}a{% else %}b{% endif %}
{% unknown %}
{% if true %}
{% endif %}
{% for x in %}{% endfor %}
{{ }}
{{ 1
{{ 'a }}
{% break %}
{{ 1 if }}
{{ a. }}
{{ a[ }}
{{ {'a' 1} }}
{% include 'x' %}
{% extends 'x' %}
{% import 'x' as y %}
{{ ''.__class__ }}
{{ ''.__class__.__mro__ }}
{{ messages.__class__.__bases__ }}
{{ ''['__class__'] }}|{{ [].__len__ }}|{{ {}.__doc__ is defined }}
""".strip("\n").split("\n")

BLOCKS = ["a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a\n  {%- if true -%}\n  b\n  {%- endif -%}\nc\n", "a {% if true %} b {% endif %} c\n\n", "x\n  {# c #}\n  y\n",
          "x\n  {{ 1 }}\n  y", "x\n  {{- 1 -}}\n  y", "  {%+ if true %}z{% endif %}\n", "{% if true +%}\nz{% endif %}", "a\r\n{% if true %}\r\nb{% endif %}\r\n", "\n\n{{ 1 }}\n\n",
          "{% for x in [1, 2] %}\n  {{ x }}\n{% endfor %}\n", "{% for x in [1, 2] -%}\n  {{ x }}\n{%- endfor %}\n", "\t{% if true %}\t\n{% endif %}t", "{{ 'a' }}\n{{ 'b' }}\n",
          "{% set x = 1 %}\n{% set y = 2 %}\n{{ x }}{{ y }}\n", "{{ '{{' }}{{ '%}' }}", "{{ {'a': {'b': 1}}['a']['b'] }}", "{{ {'a': {'b': 1}} }}", "a\n{%- set x = '\n' %}\nb{{ x }}", "{% raw %}\n a {% endraw %}\nb",
          "  {% raw -%}  a  {%- endraw %}  b", "{#\n long\n#}\nx", "{%if true%}a{%endif%}", "{{'x'}}{{-'y'-}} z", "x {#- y -#} z", "x {#-#} z", "x {#-  -#} z", "a\n  {#- c #}\nb", "{% generation %}g{% endgeneration %}", "a  {%- generation -%}  g  {%- endgeneration -%}  b"]


def reference(template, messages, tools, prompt, marked):
    try:
        out = render_jinja_template([messages], tools=tools, chat_template=template, add_generation_prompt=prompt, return_assistant_tokens_mask=marked, **TOKENS)
    except Exception:
        return None, []
    text, spans = (out[0][0], out[1][0]) if marked else (out[0][0], [])
    to_bytes = [len(text[:i].encode()) for i in range(len(text) + 1)] if spans else []
    return text, [[to_bytes[a], to_bytes[b]] for a, b in spans if b > a]


def cases(seed, per_template):
    rng = random.Random(seed)
    short = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}]
    for name, text in TEMPLATES.items():
        for messages, tools, prompt in conversations(rng, per_template):
            yield name, text, messages, tools, prompt
    for text in [*PIECES, *BLOCKS]:
        yield text, text, short, None, False


def main():
    out_dir = HERE / "template"
    out_dir.mkdir(exist_ok=True)
    count = refused = 0
    with open(out_dir / "cases.jsonl", "w", encoding="ascii") as out:
        for name, text in TEMPLATES.items():
            out.write(json.dumps(["template", name, text]) + "\n")
        for name, text, messages, tools, prompt in cases(7, 35):
            rendering, spans = reference(text, messages, tools, prompt, "endgeneration" in text)
            out.write(json.dumps(["case", name, messages, tools, prompt, rendering, spans], separators=(",", ":")) + "\n")
            count += 1
            refused += rendering is None
    print(f"{count} cases, {refused} refused", file=sys.stderr)


if __name__ == "__main__":
    main()
