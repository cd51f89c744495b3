"""The commands of the command line, one module each: a dataclass of options with `run() -> exit status`."""
