"""What everything stands on: errors, console, words, signals, processes, atomic files."""
