"""Low-rank adapters. The place is fixed by the layout; nothing is implemented yet."""
