"""The HTTP API of sd-webui-controlnet, and of the webui as far as its clients need it: plain functions of JSON, and the
routes that offer them. Liberal in how a value may be written; but no path in a request is read, no address is
fetched, and no serialised object is decoded."""
