"""Low-rank adapters in PEFT's format: what a request names, and what their files say.

Knows nothing of engines, models and files: what it needs of them is passed in as plain data.
"""
