"""What jaxdiff is compared with: the published loops as they are commonly run, in PyTorch under a Python loop.

Each is written anew from its published description: LLaDA's `generate.py` and `modeling_llada.py`, Fast-dLLM's
`generate.py`, Learn2PD's `generate.py`. They run in a process of their own, which computes only while JAX does not:
inside one process the threads of the two may share a core.

    client.py (in jaxdiff's process)  --JSON lines-->  worker.py: loops.py over model.py

`client.py` alone is imported without PyTorch.
"""
