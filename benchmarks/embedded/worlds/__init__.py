"""Figures of an embedded model of the three worlds, on scenes that no training has seen."""
