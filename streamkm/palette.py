"""Colours of clusters, for terminals and pictures."""

from __future__ import annotations

# Okabe and Ito's palette: told apart by colour-blind people too. A cluster's colour follows its id.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
