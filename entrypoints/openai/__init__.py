"""The OpenAI-compatible server: routes, requests and responses over an `AsyncEngine`."""
