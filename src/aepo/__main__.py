"""`aepo` and `python -m aepo` run the command line, or print one line that says which package it needs."""

import sys


def main() -> None:
    """Run the command line. Where only the core is installed, print one line and exit with code 2."""
    try:
        from aepo import cli
    except ModuleNotFoundError as error:
        print(
            f"aepo: {error.name} is not installed; the command line needs: pip install 'aepo[train]'", file=sys.stderr
        )
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
