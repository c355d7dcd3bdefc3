"""Compare worker/text's chat templates with transformers on many conversations; run by hand.

  gcc ... -o template tests/golden/template_main.c libworker_text.a libapi.a libcore.a -lonig -lutf8proc -ljansson -lnettle -lm
  python template_compare.py ./template [conversations a template, default 300] [seed]
"""
import json
import subprocess
import sys

import template_gen


def main():
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 300
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    cases = list(template_gen.cases(seed, count))
    lines = "".join(json.dumps({"template": text, "messages": messages, "tools": tools, "prompt": prompt, "tokens": template_gen.TOKENS}) + "\n"
                    for _, text, messages, tools, prompt in cases)
    answers = subprocess.run([sys.argv[1]], input=lines.encode(), stdout=subprocess.PIPE, check=True).stdout.decode().strip("\n").split("\n")
    assert len(answers) == len(cases), (len(answers), len(cases))
    different = refused = 0
    for (name, text, messages, tools, prompt), line in zip(cases, answers):
        ours = json.loads(line)
        want, spans = template_gen.reference(text, messages, tools, prompt, "endgeneration" in text)
        refused += want is None
        if ours.get("text") != want or (want is not None and ours["spans"] != spans):
            different += 1
            if different <= 40:
                print(f"--- {name!r}\n    want {want!r} {spans}\n    ours {ours}")
    print(f"{len(cases)} renderings ({refused} refused), {different} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
