"""Media: fetched safely, decoded within bounds, and made into what towers take.

Knows no engine and no model.
"""
