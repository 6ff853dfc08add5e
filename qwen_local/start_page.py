"""The page at `/`, for people who open the endpoint in a browser: what this is, how to call it. No script, no files."""

from html import escape

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Qwen-Image on this machine</title>
<link rel="icon" href="data:,">
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }}
  pre {{ overflow-x: auto; padding: .75rem; border: 1px solid; border-radius: .4rem; }}
  dt {{ overflow-wrap: anywhere; }}
  dd {{ margin: 0 0 .75rem 1.5rem; }}
</style>
</head>
<body>
<main>
<h1>Qwen-Image on this machine</h1>
<p>This is a RunPod endpoint at home. It has the API of RunPod's serverless endpoints, and the worker behind it is the
one that runs there. Code that works here works on RunPod with another address and your API key.</p>
<h2>A picture</h2>
<pre tabindex="0"><code>curl -s {address}/v2/local/runsync -H 'Content-Type: application/json'{token} \\
  -d '{{"input": {{"prompt": "a large red circle in the center, on a blue background",
  "width": 512, "height": 512, "num_inference_steps": 20}}}}' \\
  | python3 -c 'import base64, json, sys
open("picture.png", "wb").write(base64.b64decode(json.load(sys.stdin)["output"]["image"]))'</code></pre>
<p>This command draws a picture and saves it as <code>picture.png</code>. In the answer the picture is in
<code>output.image</code>, as base64.</p>
<h2>A page to play with</h2>
<p>{playground}</p>
<h2>Addresses</h2>
<dl>
<dt><code>{address}/v2</code></dt>
<dd>RunPod's SDK: <code>runpod.endpoint_url_base</code>, with the endpoint <code>local</code></dd>
<dt><code>{address}/v2/local/openai/v1</code></dt>
<dd>OpenAI's clients: <code>base_url</code></dd>
<dt><code>{address}/v2/local/health</code></dt>
<dd>workers and jobs, as numbers</dd>
</dl>
</main>
</body>
</html>
"""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def start_page(address: str, needs_token: bool, playground: str | None) -> str:
    """`address`: of this server. `playground`: of the page that `make play` serves, where it runs."""
    link = f'<a href="{escape(playground or "", quote=True)}">Open the playground</a>.'
    return PAGE.format(
        address=escape(address),
        token=" \\\n  -H 'Authorization: Bearer TOKEN'" if needs_token else "",
        playground=link
        if playground
        else "The command <code>make play</code> starts one, in this repository's folder.",
    )
