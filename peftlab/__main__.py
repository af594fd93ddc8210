"""`peftlab` and `python -m peftlab`, also under `accelerate launch -m peftlab`."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # an interrupt during the imports prints no traceback

from peftlab.cli.app import app  # noqa: E402


def main() -> None:
    app(prog_name="peftlab")


if __name__ == "__main__":
    main()
