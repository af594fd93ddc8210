"""`python -m peftlab`, also under `accelerate launch -m peftlab`."""

from peftlab.cli import app

app(prog_name="peftlab")
