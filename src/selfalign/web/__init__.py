"""Serve a run in the browser: `serve/` has OpenAI's API and the chat page, `view/` the viewer of rows.

Both share `guard` (who may connect), `server` (uvicorn), `responses` and `static/` (pages, styles, scripts).

Imports `pipeline` and the rooms below it, not `export`. Begin with `serve/routes` or `view/routes`.
"""
