"""Serve a run in the browser: the OpenAI-compatible server (`app`) and the viewer (`viewer`).

`guard` decides who may ask; `index` caches rows for the viewer; `static/` holds pages, styles and scripts.

Imports `pipeline` and the rooms below it, not `export`. Begin with `app` or `viewer`.
"""
