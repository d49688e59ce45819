"""The engine: everything between a user's request and the compiled programs."""
