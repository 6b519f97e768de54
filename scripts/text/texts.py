"""Texts that tokenizers get wrong: what the comparisons of scripts/text encode."""

import random

SEPARATOR = "\n__ggml_vocab_test__\n"

PLAIN = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\t\n", "a", " a", "a ", "\na", "a\n", " \n a",
    "Hello world",
    " Hello World!", "Hello, world!", "HELLO world", "camelCaseWord snake_case_word kebab-case",
    "ied 4 ½ months",
    "the the the the", "aaaaaaaaaaaaaaaaaaaa", "ababababab", "\n =", "' era", "!!!!!!", "...", "a.b.c",
    "x=-1;",
]

WHITE_SPACE = [
    *(f"a{' ' * n}b" for n in (1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 30, 31)),
    *(f"{' ' * n}x" for n in (2, 4, 8, 16)), *(f"x{' ' * n}" for n in (2, 4, 8, 16)),
    *("\n" * n + "x" for n in (2, 3, 4, 5, 16, 30)), *("\t" * n + "x" for n in (1, 2, 3, 8)),
    "a\r\nb\r\n\r\nc", "a\rb", " \t \t\t \t\n  \n   \n    \n", "    Hello\n    Hello", "a \n \n b",
    "x\n  y\n\ty\n \t z",
    "a\u00a0b\u00a0\u00a0c", "a\u3000b\u3000\u3000", "a\u2028b\u2029c", "a\u0085b", "a\u200bb\ufeffc",
    "\ufeffstart",
    "a\u2003\u2009b", " \u00a0 x", "\u00a0\n x", "a\x0bb\x0cc", "\x00\x01\x1f\x7f", "end \n", "end\n ",
    "end \n\n \n",
]

DIGITS = [
    *("1234567890123"[:n] for n in range(1, 14)), "1,234,567.89", "12345 1234 x1234 1234x 1234_ 1234.",
    "0x1F4A9 1e-07",
    "3.14159265358979", "2024-02-29T12:34:56Z", "٠١٢٣٤٥٦٧", "１２３４５６", "Ⅷ Ⅻ ⅷ", "x² y³ z₁₂", "½ ¾ ⅓",
    "①②③⑩",
    "一二三百千", "१२३४", "𝟏𝟐𝟑𝟜", "3 33 333 3333 33333 333333", "7é 7e\u0301 7中 7🙂",
]

WORDS = [
    "I've been 'told he's there, 'RE you sure? 'M not sure I'LL make it, 'D you like some tea? We'Ve a'lL",
    "it’s ’tis rock’n’roll", "don'ſ 'ſ 'K", "O'Neill's cat’s", "L'été où l'œuvre",
    "STRAẞE Straße ǅungla ǈ",
    "naïve façade Ångström", "ÀÉÎÕÜ àéîõü", "İstanbul ıI", "ﬁﬂ ﬀ", "ªº", "ʰʷ",
    "CamelCASEWord XMLHttpRequest iPhone",
    "нещо на Български, Київ", "ΑΒΓ αβγ ς", "שָׁלוֹם עולם", "مَرْحَبًا بالعالم ﷽",
    "नमस्ते दुनिया क्षत्रिय", "কেমন আছেন", "வணக்கம்",
    "สวัสดีชาวโลก กำลัง", "កាន់តែពិសេសអាចខលចេញ", "မြန်မာ", "བོད་ཡིག", "አማርኛ", "ქართული", "Հայերեն",
    "ᏣᎳᎩ", "ꦗꦮ", "𐌰𐌱 𝒜𝓑 𝕏",
]

MARKS = [
    "e\u0301", "E\u0301cole a\u0300 la", "Cu\u031b\u0309a Vie\u0323\u0302t", "Cửa Việt",
    "o\u0302\u0301 o\u0301\u0302",
    "\u1112\u1161\u11ab\u1100\u1173\u11af 한글", "\u0301x \u0301", "a\u0301\u0301\u0301\u0323\u0323",
    "\u212b \u2126 \u212a",
    "\uf900 豈", "Z\u0351\u036b\u0343\u036a\u0302a\u034a\u0343l\u0359g\u0328o", "क\u093c क़", "\u0958",
    "ド ト\u3099 ﾄﾞ", "\u1e9b\u0323", "q\u0307\u0323",
    "n\u0303o\u0308 ñö", "3\u0301 .\u0301 \u0020\u0301", "ά ά", "\u0344", "i\u0307\u0328", "ﬃ ½ \u2460",
]

HAN = [
    "我想在apple工作1314151天～", "中文，标点。「引号」！？", "漢字とひらがなとカタカナ", "ﾊﾝｶｸｶﾅ ＦＵＬＬ", "한국어 텍스트입니다", "今天天气很好。\n\n明天呢？",
    "日本語 English 混在です", "𠮷野家 𪚥", "々〆〇", "㍿ ㈱ ℃", "《三体》——刘慈欣", "ㄅㄆㄇㄈ", "龘靐齉", "a中b文c", " 中 文 ", "中\n文",
    "東京2020年7月", "　全角　",
]

EMOJI = [
    "🚀 (normal) 😶‍🌫️ (multiple) ✅ 🦙🦙", "👨‍👩‍👧‍👦", "🏳️‍🌈🏴‍☠️", "🇩🇪🇯🇵", "👍🏽👍🏿", "1️⃣#️⃣", "☺️☺", "a🙂b",
    " 🙂 ", "🙂🙂🙂🙂🙂🙂🙂🙂", "❤️‍🔥", "🫠🪿", "→ ⇒ ∀x∈ℝ: x²≥0", "♠♥♦♣ ★☆",
    "€100 £5 ¥1000 ₿ $x", "°C ± µm §1 ©®™",
]

CODE = [
    "def f(x):\n    if x > 0:\n        return x ** 2\n    return -x\n",
    "for (int i = 0; i < n; ++i) {\n\ta[i] += b[i]; // sum\n}\n",
    '{"key": [1, 2.5, null, true], "s": "a\\nb\\u00e9"}',
    "<div class=\"a\"><p>x &amp; y</p></div>\n<h1>T</h1><s>no</s>",
    "SELECT * FROM t WHERE a <> 'b' AND c != 3;",
    "#include <stdio.h>\r\nint main(void) { return 0; }\r\n",
    "let x: Vec<&'a str> = y?.iter().map(|z| z[..3].into()).collect();", "fn main() {\n\n\n}\n",
    "https://example.org/a?b=c&d=%20e#f",
    "a@b.example.org", "C:\\dir\\file.txt /usr/lib/x.so.6", "$\\frac{\\partial f}{\\partial x}$",
    "| a | b |\n|---|---|\n| 1 | 2 |\n",
    "------=======______******", "'''```\"\"\"''\"\"``", "x/**/y//z", "if(a&&b||!c)", "->>=<=>::..??",
    "\\n\\t\\\\", "_private __dunder__ $var %s {{x}} {% y %}",
    "print('a')\n\nprint(\"b\")\n\n\n# end", "//\n//\n//", "a/\nb/ \n", "![x](y) **bold** _i_ `c`",
    "0b1010 0o17 1_000_000 .5f 1.",
]

SPECIAL = [
    "<s>a</s>", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "a<|endoftext|>b",
    " <|im_end|> ", "<|eot_id|><|begin_of_text|>",
    "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
    "<bos><start_of_turn>user\nhi<end_of_turn>\n", "[INST] hi [/INST]", "[INST]hi[/INST]",
    "<think>\nx\n</think>\n\ny", "<tool_call>\n{\"a\": 1}\n</tool_call>",
    "<｜begin▁of▁sentence｜><｜User｜>hi<｜Assistant｜>", "<|channel|>analysis<|message|>x<|end|>",
    "<|start|>assistant<|channel|>final<|message|>y<|return|>", "<unk><pad><mask>", "<|im_start|",
    "|im_start|>", "<<|im_end|>>", "<|im_end|><|im_end|>", "<0x0A><0xE2>", "▁▁a▁b",
    "<unused0><unused99>", "Ġa Ċ", "[TOOL_CALLS][{\"name\": \"f\"}]",
    "<table>\n<tr><td>1</td></tr>\n</table>", "<fim_prefix>a<fim_suffix>b",
    "<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
]

HARD = PLAIN + WHITE_SPACE + DIGITS + WORDS + MARKS + HAN + EMOJI + CODE + SPECIAL


def random_texts(count, seed=1, most=8):
    """Parts of the hard texts in any order, so that their edges meet."""
    rng = random.Random(seed)
    parts = [t for t in HARD if t and t not in SPECIAL]
    def part():
        text = rng.choice(parts)
        at = rng.randrange(len(text))
        return text[at:at + rng.randint(1, 12)]
    return ["".join(part() for _ in range(rng.randint(1, most))) for _ in range(count)]
