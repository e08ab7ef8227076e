"""Write a run's models and data for other programs, and push them to the Hugging Face hub.

`job` makes one export, compares it with the trained model, then publishes it; `dataset` writes rows; `launch` writes
a folder that trains elsewhere; `push` uploads.

Imports `pipeline` and the rooms below it. Begin with `job`.
"""
