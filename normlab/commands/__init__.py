"""The two commands: arguments, verbs, printing, exit codes."""
