from .sample import Sample

DEEPSEEK_R1 = [
    Sample("nothing", ""),
    Sample(
        "both tags",
        "<think>\nHm, 2 < 3.\n\nYes.\n</think>\n\nIt is.\n",
        "It is.\n",
        reasoning="Hm, 2 < 3.\n\nYes.",
    ),
    Sample("no opening tag", "Hm.\n</think>It is.", "It is.", reasoning="Hm."),
    Sample("no closing tag", "\nHm, </thin\n", reasoning="Hm, </thin\n"),
    Sample("no reasoning", "<think>\n\n</think>\n\n It is.", " It is."),
    Sample("no content", "<think>Hm.</think>\n", reasoning="Hm."),
    Sample("tags again", "Hm.</think>a <think>b</think>", "a <think>b</think>", reasoning="Hm."),
    Sample("unicode", "嗯🤔</think>好", "好", reasoning="嗯🤔"),
    Sample("half an opening tag", "<thi", reasoning="<thi"),
]

QWEN3 = [
    Sample("no reasoning", " <b>It</b> is.", " <b>It</b> is."),
    Sample("both tags", "\n<think>\nHm.\n</think>\n\nIt is.", "It is.", reasoning="Hm."),
    Sample("empty reasoning", "<think>\n\n</think>\n\nIt is.", "It is."),
    Sample("no closing tag", "<think>\nHm.\n\n", reasoning="Hm.\n\n"),
    Sample("tags later", "It <think>is</think>.", "It <think>is</think>."),
    Sample("half an opening tag", "\n<think", "\n<think"),
]

CHAINED = [
    Sample(
        "reasoning, content and a call",
        "<think>\nA <tool_call>?\n</think>\n\nYes.\n"
        '<tool_call>\n{"name": "f", "arguments": {"a": "</think>"}}\n</tool_call>',
        "Yes.\n",
        (("f", '{"a": "</think>"}'),),
        "A <tool_call>?",
    ),
    Sample(
        "a call alone",
        '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
        None,
        (("f", "{}"),),
    ),
    Sample("content alone", "It is <tool", "It is <tool"),
]
