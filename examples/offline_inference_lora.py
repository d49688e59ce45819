"""Answers with a model, with an adapter of it, and with both in one batch.

    python examples/offline_inference_lora.py [MODEL ADAPTER]

MODEL is a Hugging Face id or a local folder, ADAPTER the same for a LoRA adapter of it, in PEFT's
format. Without them the demo model answers, with the adapter for SQL in examples/sql_adapter.
"""

import sys
from pathlib import Path

from quire import LLM, LoRARequest, SamplingParams

ADAPTER = str(Path(__file__).resolve().parent / "sql_adapter")
PROMPTS = [
    "Table cars: name, price, age\nWhich cars cost more than 300?\nSQL:",
    "Table boats: model, speed, size\nWhich 3 boats have the highest speed?\nSQL:",
    "Table robots: name, weight, score\nHow many robots have a score below 52?\nSQL:",
]


def main(model: str | None = None, adapter: str = ADAPTER) -> None:
    params = SamplingParams(temperature=0, max_tokens=48)
    sql = LoRARequest("sql", 1, adapter)
    with LLM(model, enable_lora=True) as llm:
        ways = {
            "base": llm.generate(PROMPTS, params),
            "adapter": llm.generate(PROMPTS, params, lora_request=sql),
            "mixed": llm.generate(PROMPTS, params, lora_request=[sql, None, sql]),
        }
    for way, outputs in ways.items():
        for output in outputs:
            print(f"{way}: {output.outputs[0].text!r}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
