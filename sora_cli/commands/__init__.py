"""The commands of `sora`, one file each: a function whose signature is its command line.

Read `train` and `_training` first: a run, one call per step. `options` holds the flags of several
commands, `completion` what the Tab key offers; files with an underscore hold parts that two
commands share. Help texts of the commands themselves stand in `sora_cli.app`.
"""
