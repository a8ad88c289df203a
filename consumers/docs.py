"""``python -m consumers.docs`` (``make docs``): regenerate the generated parts of the docs."""

from __future__ import annotations

from pathlib import Path

from streamkm import metrics, settings

ROOT = Path(__file__).parents[1]
PARTS = {
    ROOT / "README.md": ("settings", settings.markdown_table),
    ROOT / "docs" / "metrics.md": ("metrics", metrics.markdown_table),
}


def main() -> None:
    """Replace the text between the markers of each generated part."""
    for file, (name, table) in PARTS.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        before, found, rest = file.read_text().partition(begin)
        if not found or end not in rest:
            raise SystemExit(f"{file} has no {begin.strip()} ... {end}")
        file.write_text(before + begin + table() + end + rest.partition(end)[2])


if __name__ == "__main__":
    main()
