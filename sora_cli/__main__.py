"""`python -m sora_cli`."""

from sora_cli.app import main

if __name__ == "__main__":
    main()
