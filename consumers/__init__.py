"""The programs of streamkm: one module per command, without logic of their own."""
