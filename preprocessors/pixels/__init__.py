"""Preprocessors that work on pixels: color, blur, tile, inpaint."""
