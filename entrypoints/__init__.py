"""The shell: command line and chat templates. Uses the public names of `quire` like any program."""
