// Draws pictures on an endpoint and saves them, by fetch alone. Ctrl-C cancels the job. It needs Node 22.18 or later.
//
// export ENDPOINT_URL=https://api.runpod.ai/v2/ENDPOINT_ID RUNPOD_API_KEY=...
// node client.ts "a fox in the snow" seed=7             # FIELD=VALUE is a field of the job
// node client.ts "make it winter" image=@garden.jpg     # FIELD=@FILE sends a picture

import { readFile, writeFile } from "node:fs/promises";

type Job = { id: string; status: string; output?: any; error?: string };

const endpoint = (process.env.ENDPOINT_URL ?? "").replace(/\/+$/, "");
const headers = { Authorization: `Bearer ${process.env.RUNPOD_API_KEY ?? ""}`, "Content-Type": "application/json" };
const UNSENT = ["ECONNREFUSED", "ENOTFOUND", "EAI_AGAIN", "UND_ERR_CONNECT_TIMEOUT"];
const QUOTES = "A prompt of several words needs quotes.";
const wait = (seconds: number) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

function fail(sentence: string): never {
  console.error(sentence);
  process.exit(1);
}

/** The bytes of the answer. What may pass is tried again: no connection, HTTP 429 and 5xx. */
async function request(url: string, options: RequestInit = {}): Promise<Buffer> {
  for (const pause of [1, 2, 4, 8, 16, 0]) {
    let problem: string, mayPass: boolean;
    try {
      const answer = await fetch(url, { ...options, signal: AbortSignal.timeout(60_000) });
      const bytes = Buffer.from(await answer.arrayBuffer());
      if (answer.ok) return bytes;
      problem = `HTTP ${answer.status} ${answer.statusText} ${bytes.subarray(0, 1000)}`;
      mayPass = answer.status === 429 || answer.status >= 500;
    } catch (error: any) {
      const { code, message } = error.cause ?? error;
      problem = message || code;
      // Where no connection was made, the endpoint has no job. Otherwise a second /run might draw a second time.
      mayPass = UNSENT.includes(code) || !url.endsWith("/run");
    }
    if (!pause || !mayPass) fail(`\n${url}: ${problem}`);
    console.error(`\n${problem}: trying again in ${pause} s`);
    await wait(pause);
  }
  return fail(url);
}

async function call(path: string, options: RequestInit = {}): Promise<Job> {
  return JSON.parse(String(await request(endpoint + path, { headers, ...options })));
}

async function field(text: string): Promise<[string, string]> {
  const [, name, value] = text.match(/^(.+?)=(.*)$/s) ?? fail(`${text} is not FIELD=VALUE. ${QUOTES}`);
  if (!value.startsWith("@")) return [name, value];
  const bytes = await readFile(value.slice(1)).catch((error) => fail(`${name}: ${error.message}`));
  return [name, `data:;base64,${bytes.toString("base64")}`];
}

const [prompt, ...texts] = process.argv.slice(2);
if (!prompt || !endpoint) fail('Usage: ENDPOINT_URL=... RUNPOD_API_KEY=... node client.ts "PROMPT" [FIELD=VALUE ...]');
const fields = Object.fromEntries(await Promise.all(texts.map(field)));
// This program reads the worker's own shape, whatever the endpoint answers in by itself.
const body = JSON.stringify({ input: { prompt, ...fields, response_shape: "worker" } });
const megabytes = Buffer.byteLength(body) / 1e6;
const tooLarge = `/run takes 10 MB, and this job has ${megabytes.toFixed(1)} MB. Send smaller pictures, or their URLs.`;
if (megabytes > 10) fail(tooLarge);

let job: Job | undefined;
let cancelling = false;
process.once("SIGINT", async () => {
  cancelling = true;
  if (job) await call(`/cancel/${job.id}`, { method: "POST" });
  const unknown = "Stopped before the endpoint told the job's id: the job may be running there.";
  console.error(`\n${job ? `Cancelled ${job.id}` : unknown}`);
  process.exit(130);
});
job = await call("/run", { method: "POST", body });
while (cancelling || job.status === "IN_QUEUE" || job.status === "IN_PROGRESS") {
  const { stage = "", step = 0, total = "?" } = job.output ?? {};
  if (!cancelling) process.stderr.write(`\r${`${job.status} ${stage} ${step}/${total}`.padEnd(40)}`);
  await wait(0.5);
  job = await call(`/status/${job.id}`);
}
console.error();
if (job.status !== "COMPLETED" || !job.output) fail(`${job.status}: ${job.error ?? "no reply"}`);

const reply = Array.isArray(job.output) ? job.output.at(-1) : job.output; // an endpoint that streams has a list
const { metadata } = reply;
const pictures: string[] = reply.image_urls ?? reply.images ?? [reply.image_url ?? reply.image];
for (const [index, picture] of pictures.entries()) {
  const file = `${job.id}-${index + 1}.${metadata.output_format}`;
  await writeFile(file, picture.includes(":") ? await request(picture) : Buffer.from(picture, "base64"));
  console.log(file);
}
console.error(metadata.dimensions, "seeds", metadata.seeds.join(), ...(metadata.warnings ?? []));
if (metadata.backend !== "qwen-image") fail(`This is a stand-in, which no model drew: ${metadata.fallback_reason}`);
