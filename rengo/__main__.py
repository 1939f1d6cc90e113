"""``python -m rengo`` is the ``rengo`` command."""

from rengo.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
