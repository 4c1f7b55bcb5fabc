"""The chatbot of the demo: SmolLM2-135M-Instruct on one CPU core, behind an OpenAI-compatible server of its own process.

    python -m guardrail.assistant --port 8090

It shows a guard at work on a machine that has no other model and reaches none. It is a very small model: it is fluent, and it
makes things up. Within the package imports go one way: gguf, graph, weights, model, server.
"""

NAME = "SmolLM2-135M-Instruct"
