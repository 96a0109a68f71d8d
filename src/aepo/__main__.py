"""`aepo` and `python -m aepo`: the command line, or one line that says what it needs."""

import sys


def main() -> None:
    """Run the command line; exit code 2 where only the core is installed."""
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
