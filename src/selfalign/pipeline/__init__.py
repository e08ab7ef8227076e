"""Run the stages of SELF-ALIGN in order; one module per step of the method.

`order` knows which stage reads and writes which files and which still have to run. Stages never import each other: they
meet in the files of the run. `adapter_training` is what stages 3 and 4 share.

Imports `report`, `planning`, `evaluation`, `run` and the rooms below them. Begin with `order`, then
`step2_self_align`.
"""
