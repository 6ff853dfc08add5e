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
  table {{ border-collapse: collapse; }}
  td, th {{ text-align: left; vertical-align: top; padding: .2rem 1.5rem .2rem 0; }}
</style>
</head>
<body>
<main>
<h1>Qwen-Image on this machine</h1>
<p>This is a RunPod endpoint at home. It has the API of RunPod's serverless endpoints, and the worker behind it is the
one that runs there. Code that works here works on RunPod with another address and your API key.</p>
<h2>A picture</h2>
<pre tabindex="0"><code>curl -s {address}/v2/local/runsync -H 'Content-Type: application/json'{token} \\
  -d '{{"input": {{"prompt": "a large red circle in the center, on a blue background"}}}}'</code></pre>
<p>The picture is in the answer, as base64 in <code>output.image</code>.</p>
<h2>A page to play with</h2>
<p>{playground}</p>
<h2>Addresses</h2>
<table>
<thead><tr><th scope="col">address</th><th scope="col">for</th></tr></thead>
<tbody>
<tr><td><code>{address}/v2</code></td>
<td>RunPod's SDK: <code>runpod.endpoint_url_base</code>, endpoint <code>local</code></td></tr>
<tr><td><code>{address}/v2/local/openai/v1</code></td><td>OpenAI's clients: <code>base_url</code></td></tr>
<tr><td><code>{address}/v2/local/health</code></td><td>workers and jobs, as numbers</td></tr>
</tbody>
</table>
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
