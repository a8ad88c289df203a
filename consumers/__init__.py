"""The programs of streamkm: thin, they compose the library and hold no logic of their own."""
