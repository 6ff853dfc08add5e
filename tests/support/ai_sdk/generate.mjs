// One call of the AI SDK's generateImage by RunPod's provider, as the provider's README shows it.
//
//     node generate.mjs '{"baseURL": ..., "model": ..., "call": {...}}' RESULT
//
// writes {pictures: [{base64, mediaType}], providerMetadata} or {error} into the file RESULT. In the call's
// `prompt.images`, a picture is a URL or base64.

import { writeFileSync } from 'node:fs';
import { createRunpod } from '@runpod/ai-sdk-provider';
import { generateImage } from 'ai';

const [, , request, result] = process.argv;
const { baseURL, model, call } = JSON.parse(request);
const runpod = createRunpod({ apiKey: 'key', baseURL });

let answer;
try {
  const { images, providerMetadata } = await generateImage({ model: runpod.image(model), ...call });
  const pictures = images.map(({ base64, mediaType }) => ({ base64, mediaType }));
  answer = { pictures, providerMetadata };
} catch (error) {
  answer = { error: String(error) };
}
writeFileSync(result, JSON.stringify(answer));
