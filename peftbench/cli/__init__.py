"""The command line, a file a group of commands; `app` is the whole of it. Argument handling only."""
