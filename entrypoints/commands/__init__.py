"""The subcommands of `quire`: each module adds its parser, which names the function to run."""
