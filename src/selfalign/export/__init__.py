"""Write a run's models and data sets for other programs, and upload them to the Hugging Face hub.

`model_export` writes one trained model, loads it back and publishes it only if it matches; `dataset` writes rows with
a card; `launch` writes a folder that trains on other machines; `push` uploads an export.

Imports `pipeline` and the rooms below it. Begin with `model_export`.
"""
