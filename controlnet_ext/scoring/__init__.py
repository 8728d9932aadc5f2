"""Scores of images: how well each obeys the maps that guided it, between an unguided image and the source itself.

The measures of kinds of maps are in `maps.fidelity`; here are the units of an image, floor and ceiling, many images,
and reports."""
