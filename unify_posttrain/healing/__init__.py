"""Does reinforcement bring back what fine-tuning forgot? A chain of this package's commands, and one page of what came of it.

    plan         which steps there are, with which commands        conduct      run what is missing, in order
    results      what the steps have left behind, as plain data    page, plots  heals.md and its figure

Nothing here imports torch, verl or ray: steps are subprocesses, and everything else is read from their files.
"""
