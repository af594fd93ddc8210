"""`peftlab` and `python -m peftlab`, also under `accelerate launch -m peftlab`."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is lost while this imports, and no traceback worth it

from peftlab.cli.main import app  # noqa: E402


def main() -> None:
    app(prog_name="peftlab")


if __name__ == "__main__":
    main()
