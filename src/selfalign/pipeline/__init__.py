"""Run the stages of SELF-ALIGN in order; one module per step of the method.

`order` lists the files that each stage reads and writes, and decides which stages still have to run. Stages never
import each other: they communicate through the files of the run. Stages 3 and 4 share `adapter_training`, stages 2 and
4 `responses`, and both parts of stage 1 `rounds`.

Imports `report`, `planning`, `evaluation`, `run` and the rooms below them. Begin with `order`, then
`step2_self_align`.
"""
