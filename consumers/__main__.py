"""``python -m consumers`` runs ``streamkm``."""

from consumers.cli import main

if __name__ == "__main__":
    main()
