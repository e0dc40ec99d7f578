"""The GGUF format and llama.cpp's names; this room knows neither adapters nor models.

Read `places` first (a module's weight in llama.cpp, and the order of its rows), then the two files
that are written: `lora_file` (factors beside a base model) and `merged_file` (a base model with an
update in it). `kinds` says which kinds of models llama.cpp stores how, `header` checks a file
before it is used, and `package` is all care for the package `gguf`, which need not be installed.
"""
