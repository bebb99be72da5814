"""Some 240 texts that tokenizers fall over: spaces, controls, scripts, marks, emoji, code, numbers, markers."""

MARKERS = (
    "<s>", "</s>", "<unk>", "<bos>", "<eos>", "<pad>", "[INST]", "[/INST]",
    "<|im_start|>", "<|im_end|>", "<|eot_id|>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|endoftext|>", "<start_of_turn>",
    "<end_of_turn>", "<|start_header_id|>",
    "<think>", "<tool_call>", "<0x41>", "<mask>", "<unused7>", "<|fim_pad|>",
)  # fmt: skip
_SPACES = (
    "", " ", "  ", "   ", "    ", "     ", " " * 8, " " * 16, " " * 17, " " * 31,
    " " * 64, " a", "  a", "   a", "a ",
    "a  ", "  a  b", "a   b    c     d", " \n", "\n ", " \n \n ", "\n", "\n\n",
    "\n\n\n", "\n" * 17, "\t", "\t\t",
    "\t\t\t\tx", " \t \t ", "\r", "\r\n", "\r\n\r\n", "a\r\nb\r\n\r\nc", "\n\r",
    "\x0b", "\x0c", "a\u00a0b", "\u00a0",
    "\u2003x", "\u3000日本", "\u2028\u2029\u0085", "\u200b", "\ufeff", "\ufeffBOM",
    "x\u200by", "trailing ", "trailing\n",
    "trailing\t", "\n\nparagraph\n\n", "two  spaces and   three", "\t\tx\n\n y",
)  # fmt: skip
_CODE = (
    "def f(x):\n    return x**2  # ok\n", "if (a&&b) {\n\treturn !c;\n}",
    "for i in range(10):\n        print(i)\n",
    "class A:\n    def b(self):\n        pass\n\n\n", "<div class=\"x\">&amp;</div>",
    "a->b->c::d<e>();", "x=[[1,2],[3]];",
    "#include <stdio.h>\r\nint main(){return 0;}\r\n",
    "SELECT * FROM t WHERE a='b';", "{\"a\": [1, 2.5, null], \"b\": {}}",
    "\\begin{equation}\\frac{1}{2}\\end{equation}", "\\n \\u0041 %s {0}",
    "```python\nprint('x')\n```", "/* */ // -- #",
    "CamelCase snake_case kebab-case SCREAMING_CASE", "a+++++b",
    "!=== <=> ?? ?. ...", "\t1\t2\n\t3\t4", "$PATH:${HOME}",
    "  - item\n    - nested\n      - deeper\n", "| a | b |\n|---|---|\n",
    "0b1010 0o17 0xFF 1_000 1e-9 .5 5.",
)  # fmt: skip
_NUMBERS = (
    "0", "1", "12", "123", "1234", "12345", "123456789012345",
    "3.14159 1,000,000 2024-01-01", "1 2 3 4", "007", "-1",
    "٠١٢٣", "१२३", "½¼Ⅷ①²", "3 33 333 3333 33333", "1st 2nd", "$1.00 €2,50 50%",
    "12:34:56.789", "v1.2.3-rc4", "1a2b3c",
)  # fmt: skip
_WORDS = (
    "a", "Hello world", "don't I'LL we've 'tis Rock'n'roll",
    "I'm sure they'd 'S 'RE", "O’Reilly’s “quotes” … —",
    "naïve café Ünïcödé", "Straße ẞ ŉ", "https://example.org/a?b=c&d=%20#e",
    "user+tag@example.co.uk", "C:\\Users\\x",
    "/usr/local/lib/python3.11", "a" * 100, "ab" * 200, "Donaudampfschifffahrtsgesellschaftskapitän" * 3, "x" * 1000,
    "AAAAaaaa", "aBcDeF", "HTTPServer2XMLParser", "!!!???...---", "¡¿", "((([[[{{{",
    "«»", "•·●", "© ® ™ § ¶", "±×÷≠≤∞",
    "http://[::1]:80/", "e.g., i.e., etc.", "Mr. O'Neil-Smith, Ph.D.",
    "ALL CAPS TEXT", "word,word;word:word",
)  # fmt: skip
_SCRIPTS = (
    "日本語のテキスト", "中文。標點，「引號」", "한국어 문장", "ㄱㄴㄷ", "العربية",
    "مرحبا بالعالم", "עברית", "שָׁלוֹם", "हिन्दी में", "क्षत्रिय",
    "ไทยไม่มีช่องว่าง", "ภาษา", "Ωμέγα", "Привет, мир", "ქართული", "Հայերեն", "አማርኛ",
    "বাংলা", "தமிழ்", "తెలుగు", "မြန်မာ", "ខ្មែរ",
    "ᓀᐦᐃᔭᐍᐏᐣ", "Tiếng Việt", "Ελληνικά", "𝔘𝔫𝔦", "𐍈𐌰𐌹", "𠀀𠀁", "漢字かなカナｶﾅ",
    "русский中文mixedعربي", "ＦＵＬＬ", "ﬁ ﬂ ﷺ",
    "\u202eRTL\u202c", "\u2067isolate\u2069",
)  # fmt: skip
_MARKS = (
    "e\u0301", "é", "e\u0301 é", "A\u030a Å", "o\u0302\u0323 ộ",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘", "\u0301", " \u0301", "각", "\u1100\u1161\u11a8", "ﷻ", "\u093f",
)  # fmt: skip
_EMOJI = (
    "🚀", "🚀😶\u200d🌫️", "👩\u200d👩\u200d👧\u200d👦", "👍🏽👍🏿", "🇩🇪🇫🇷",
    "🏳️\u200d🌈", "1️⃣#️⃣", "☺☺️", "😀" * 20, "a😀b", "🫠🪿", "⌚⏰✂️",
)  # fmt: skip
_BYTES = (
    "\x00", "a\x00b", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x9f",
    "\ufffd", "\ufffe\uffff", "\U0010ffff",
    "\ue000\uf8ff", "\U000e0001\U000e0041", "ÿþ", "\u0600", "\u00ad", "\x08\x08", "�\x00�",
)  # fmt: skip
_ODD = (
    "▁", "▁▁", "▁a", "a▁b", "a ▁ b", " ▁", "Ġ", "Ġa", "Ċ", "ĠĠ", "<", "<|", "<|im_",
    "[", "<0x", "<0xZZ>", "</", "<s", "s>",
    "[PAD5]", "<|not_a_token|>", "<<s>>", "< s >", "<|im_start |>",
)  # fmt: skip
NASTY = (*_SPACES, *_CODE, *_NUMBERS, *_WORDS, *_SCRIPTS, *_MARKS, *_EMOJI, *_BYTES, *_ODD)


def with_markers(markers: tuple[str, ...] = MARKERS) -> list[str]:
    """Markers alone, glued to words, between spaces, in a row, and in whole conversations."""
    texts = []
    for marker in markers:
        texts += [marker, f"a{marker}b", f" {marker} ", f"{marker}{marker}", f"{marker}\n    user: hi\n{marker}"]
    return [*texts, "".join(f"{marker}user\nhi" for marker in markers)]
