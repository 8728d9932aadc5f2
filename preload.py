"""Flags of stable-diffusion-webui's command line, under the names that sd-webui-controlnet has."""


def preload(parser):
    parser.add_argument("--controlnet-dir", metavar="FOLDER", help="one more folder of control models")
    parser.add_argument("--controlnet-annotator-models-path", metavar="FOLDER", help="folder of preprocessors' weights")
    parser.add_argument("--controlnet-preprocessor-cache-size", type=int, default=16, help="maps kept in memory")
    parser.add_argument("--controlnet-loglevel", default="INFO", help="taken for old scripts' sake, of no effect")
    parser.add_argument("--controlnet-tracemalloc", action="store_true", help="likewise")
    parser.add_argument("--no-half-controlnet", action="store_true", help="control models in float32")
