"""Speed and memory of training, sampling, encoding and bounds: what `ladder bench` measures.

Each case runs in a process of its own (`child`), because peak memory, compiled graphs and
precision are a process's; `trainee` is the only place that knows how a model is made fast.
"""
