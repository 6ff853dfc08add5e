"""The playground: a page in the browser that draws and edits pictures on an endpoint, at home or at RunPod.

It speaks to the endpoint by HTTP alone and knows nothing of how the worker draws. Only `page` and `wiring` need Gradio,
which is installed in an environment of its own.
"""
