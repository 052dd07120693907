"""The embedded default model, as data files; see its README.md."""

from pathlib import Path

# Resolved, because an installer may lay a package out as links, and no file of a model folder may
# be a link out of it.
FOLDER = Path(__file__).resolve().parent
