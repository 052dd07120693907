"""The embedded default model, as data files; see its README.md."""
