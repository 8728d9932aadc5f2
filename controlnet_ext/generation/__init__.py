"""One image from all that it is made of: recipe, preparation, rendering, and what is done to it afterwards."""

DTYPES = ("float32", "bfloat16", "float16")  # here, where the help of commands finds them without what makes images
DEVICES = ("cpu", "cuda", "mps")
