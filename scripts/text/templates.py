#!/usr/bin/env python3
"""Chat templates as transformers renders them: the goldens of `golden/text/`.

    scripts/text/templates.py                        the templates beside this script, to golden/text/
    scripts/text/templates.py --check                makes them again and compares
    scripts/text/templates.py --out FOLDER FILE..    other templates
    WAYINFER_TEMPLATES=FOLDER cargo test --lib text::chat

A golden has the source of a template and a list of cases: a conversation of conversations.json by its name,
settings, and the text, or the message that the template raises. The date is 2024-02-29. `python.json` has
expressions, each with its text: what templates use of Python's Jinja. The templates `own-*` were written for
this: they use what published templates of the families use. Of the others deepseek-v3 is DeepSeek's (MIT),
qwen3 Qwen's (Apache-2.0); gemma, gemma3 and llama3.1 are as in the npm packages @lenml/tokenizer-*
(Apache-2.0).

Needs: pip install transformers jinja2
"""

import argparse
import datetime
import json
from pathlib import Path

import jinja2
from transformers.utils import chat_template_utils

from conversations import CONVERSATIONS
from snippets import CONTEXT, SNIPPETS

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent.parent / "golden/text"

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

# Each conversation goes through every template with each of these.
SETTINGS = [
    {"add_generation_prompt": True},
    {"add_generation_prompt": False, "enable_thinking": False},
]

# Settings that one template alone knows, with the conversations of these names.
OWN_SETTINGS = {
    "own-channels": [{"reasoning_effort": "high", "model_identity": "You are Ö."}],
    "own-functions": [{"budget": 0}, {"budget": 600}, {"budget": 99999}],
    "own-roles": [{"controls": {"citations": True, "length": "short"}}, {"thinking": True}],
    "own-modes": [{"enable_thinking": False}],
}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 2, 29, 13, 4, 5)


def render(source, conversation, settings):
    """The text, or what the template raises; None where transformers fails otherwise."""
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            conversations=[conversation["messages"]], tools=conversation.get("tools"),
            documents=conversation.get("documents"), chat_template=source, **TOKENS, **settings)
        return {"rendered": texts[0]}
    except jinja2.exceptions.UndefinedError:
        return None
    except jinja2.exceptions.TemplateError as error:
        return {"raised": str(error)}
    except (TypeError, AttributeError, ValueError):
        return None


def golden(path):
    with open(path, encoding="utf-8", newline="") as file:
        source = file.read()
    cases = []
    own = [{"add_generation_prompt": True, **settings} for settings in OWN_SETTINGS.get(path.stem, [])]
    for name, conversation in CONVERSATIONS.items():
        more = own if name in ("plain", "question", "tools", "documents") else []
        for settings in SETTINGS + more:
            outcome = render(source, conversation, settings)
            if outcome is not None:
                cases.append({"conversation": name, "settings": settings, **outcome})
    return {"source": source, "cases": cases}


def snippets():
    cases = []
    for source in SNIPPETS:
        compiled = chat_template_utils._compile_jinja_template(source)
        cases.append({"source": source, "rendered": compiled.render(**CONTEXT)})
    return {"context": CONTEXT, "cases": cases}


def files(paths):
    """The names and contents of all goldens."""
    conversations = {"special_tokens": TOKENS, "conversations": CONVERSATIONS}
    templates = {path.stem: golden(path) for path in paths}
    return {"conversations": conversations, "python": snippets()} | templates


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("templates", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=GOLDEN)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    chat_template_utils.datetime = Clock
    wrong = 0
    for name, content in files(args.templates or sorted((HERE / "templates").glob("*.jinja"))).items():
        path = args.out / f"{name}.json"
        text = json.dumps(content, ensure_ascii=False, indent=0) + "\n"
        if args.check:
            if path.read_text(encoding="utf-8") != text:
                print(f"differs: {path}")
                wrong += 1
            continue
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        raised = sum("raised" in case for case in content.get("cases", []))
        print(f"{path}: {len(content.get('cases', []))} cases, {raised} of them raise")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
