"""Writes the generated modules of the library: what ``make sql`` does."""

from tools.generate.files import generated

for path, text in generated().items():
    path.write_text(text, encoding="utf-8")
