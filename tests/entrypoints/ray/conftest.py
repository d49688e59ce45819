"""Where Ray is not installed, nothing here is a test."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("ray") else ["*"]
