"""What the kinds of media are called. Imports nothing, so that options may name them."""

KINDS = ("image", "video", "audio")
"""As prompts name them."""
NOUNS = {"image": "pictures", "video": "videos", "audio": "sounds"}
"""As messages to users do."""
