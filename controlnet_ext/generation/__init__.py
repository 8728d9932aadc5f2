"""One image from all that it is made of: recipe, preparation, rendering, and what is done to it afterwards."""
