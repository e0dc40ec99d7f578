"""One file per command: flags, one plain function, console output."""
