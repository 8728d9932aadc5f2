"""Flags of stable-diffusion-webui's command line, under the names that sd-webui-controlnet has."""

from importlib.util import find_spec


def preload(parser):
    if find_spec("modules_forge"):
        return  # Forge and its like have flags of these names, and a flag added twice stops the one who adds it last
    parser.add_argument("--controlnet-dir", metavar="FOLDER", help="one more folder of control models")
    parser.add_argument("--controlnet-annotator-models-path", metavar="FOLDER", help="folder of preprocessors' weights")
    parser.add_argument("--controlnet-preprocessor-cache-size", type=int, default=16, help="maps kept in memory")
    parser.add_argument("--controlnet-loglevel", default="INFO", help="taken for old scripts' sake, of no effect")
    parser.add_argument("--controlnet-tracemalloc", action="store_true", help="likewise")
    parser.add_argument("--no-half-controlnet", action="store_true", help="control models in float32")
