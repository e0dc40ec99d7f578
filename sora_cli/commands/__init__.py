"""The commands of `sora`, one file each: a plain function that prints."""
