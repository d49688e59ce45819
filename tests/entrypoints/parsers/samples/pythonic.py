from .sample import Sample

SAMPLES = [
    Sample(
        "no call", "See [1], [link](x.html) and a[f(1)].", "See [1], [link](x.html) and a[f(1)]."
    ),
    Sample(
        "one call",
        '[get_weather(city="Paris")]',
        None,
        (("get_weather", '{"city": "Paris"}'),),
    ),
    Sample(
        "two calls",
        "[f(a=1, b='x'), g()]",
        None,
        (("f", '{"a": 1, "b": "x"}'), ("g", "{}")),
    ),
    Sample(
        "text before and after",
        "I will look. [f(a=1)] Done [sic].",
        "I will look.  Done [sic].",
        (("f", '{"a": 1}'),),
    ),
    Sample(
        "typed values",
        "[f(a=-1, b=2.5, c=True, d=None, e=false, g=null, h=(1, 2), i=1_000)]",
        None,
        (
            (
                "f",
                '{"a": -1, "b": 2.5, "c": true, "d": null, "e": false, "g": null, "h": [1, 2], '
                '"i": 1000}',
            ),
        ),
    ),
    Sample(
        "nested values",
        "[f(a={'b': [1, {'c': []}], 'd': {}}, e=[[true], 'x'],)]",
        None,
        (("f", '{"a": {"b": [1, {"c": []}], "d": {}}, "e": [[true], "x"]}'),),
    ),
    Sample(
        "strings that look like syntax",
        r"""[f(a=")], g(b='", b='it\'s "é\u00e9', c="", d='a=1, b=2', e="x" "y")]""",
        None,
        (
            (
                "f",
                r"""{"a": ")], g(b='", "b": "it's \"éé", "c": "", "d": "a=1, b=2", "e": "xy"}""",
            ),
        ),
    ),
    Sample(
        "line breaks in strings",
        '[f(a="x\\ny", b="""p\n"q\\"""",\n c="raw\nbreak")]',
        None,
        (("f", r'{"a": "x\ny", "b": "p\n\"q\"", "c": "raw\nbreak"}'),),
    ),
    Sample(
        "an escape that Python does not know",
        r"[f(a='\d+')]",
        None,
        (("f", r'{"a": "\\d+"}'),),
    ),
    Sample(
        "names that are not Python's",
        '[get-weather(from="Rome", class=1), mail.send()]',
        None,
        (("get-weather", '{"from": "Rome", "class": 1}'), ("mail.send", "{}")),
    ),
    Sample(
        "spaces",
        "\n[ f( a = 1 , b = 2 ) , g( ) ]\n",
        None,
        (("f", '{"a": 1, "b": 2}'), ("g", "{}")),
    ),
    Sample("arguments without names", "[f(a=1, 2)]", "[f(a=1, 2)]"),
    Sample("an argument twice", "[f(a=1, a=2)]", "[f(a=1, a=2)]"),
    Sample("code that would have to run", "[f(a=open('x').read())]", "[f(a=open('x').read())]"),
    Sample("a name for a value", "[f(a=b)]", "[f(a=b)]"),
    Sample("a sum", "[f(a=1+1)]", "[f(a=1+1)]"),
    Sample(
        "what JSON does not have",
        "[f(a=b'x'), g(b={1}), h(c=2j)]",
        "[f(a=b'x'), g(b={1}), h(c=2j)]",
    ),
    Sample("a call of a call", "[f(a=1)(b=2)]", "[f(a=1)(b=2)]"),
    Sample("a loop", "[f() for f in fs]", "[f() for f in fs]"),
    Sample("brackets that do not match", "[f(a=1]) is", "[f(a=1]) is"),
    Sample("broken off in the name", "[get_w", "[get_w"),
    Sample("broken off in a string", "Hm [f(a='x", "Hm [f(a='x"),
    Sample("broken off before the end", "[f(a=1)", "[f(a=1)"),
    Sample("one list in another", "[[f(a=1)]]", "[]", (("f", '{"a": 1}'),)),
]

LLAMA4 = [
    *SAMPLES,
    Sample(
        "markers",
        "<|python_start|>[f(a=1), g()]<|python_end|>",
        None,
        (("f", '{"a": 1}'), ("g", "{}")),
    ),
    Sample(
        "markers and text",
        "Hm.<|python_start|>\n[f(a='<|python_end|>')]\n<|python_end|>\nDone.",
        "Hm.\nDone.",
        (("f", '{"a": "<|python_end|>"}'),),
    ),
    Sample("no end", "<|python_start|>[f()]", None, (("f", "{}"),)),
    Sample(
        "markers around other code",
        "<|python_start|>print([1])<|python_end|>",
        "<|python_start|>print([1])<|python_end|>",
    ),
    Sample("broken off in a marker", "<|python_sta", "<|python_sta"),
]
