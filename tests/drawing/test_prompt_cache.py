"""Text encodings are reused, bounded, and change no bit of a picture."""

import pytest
import torch

from qwen_worker.drawing.prompt_cache import NoDigest, PromptCache, digest

from ..conftest import as_text, run


@pytest.fixture
def encoded():
    """encoded(worker): the number of times its text encoders have run from now on, as the length of a list."""
    hooks = []

    def calls_of(worker):
        calls = []
        pipes = [worker.pipelines.load(task).pipe for task in ("generate", "edit")]
        for encoder in {id(pipe.text_encoder): pipe.text_encoder for pipe in pipes}.values():
            hooks.append(encoder.register_forward_hook(lambda *_: calls.append(1)))
        return calls

    yield calls_of
    for hook in hooks:
        hook.remove()


def image(worker, prompt, **fields):
    """`prompt` is the test's own, and so is the negative prompt: other tests have not encoded them."""
    fields = {"prompt": prompt, "negative_prompt": f"not {prompt}", "num_inference_steps": 1, **fields}
    return run(worker, {"width": 256, "height": 256, "seed": 1, **fields})["output"]["image"]


def test_a_repeated_prompt_is_encoded_once_and_draws_the_same_bytes(cold_worker, warm_worker, encoded):
    without = cold_worker(QWEN_PROMPT_CACHE_MB=0)
    calls, prompt = encoded(without), "a red circle, encoded once"
    uncached = image(without, prompt)
    assert len(calls) == 2  # the prompt and the negative prompt
    assert image(without, prompt) == uncached and len(calls) == 4
    calls = encoded(warm_worker)
    assert image(warm_worker, prompt) == uncached and len(calls) == 2
    assert image(warm_worker, prompt) == uncached and len(calls) == 2
    image(warm_worker, "a blue square, encoded once", negative_prompt=f"not {prompt}")
    assert len(calls) == 3  # the negative prompt was there


def test_several_pictures_of_a_job_are_encoded_once(warm_worker, encoded):
    calls = encoded(warm_worker)
    image(warm_worker, "three red circles", num_images=3)
    assert len(calls) == 2


def test_an_edit_is_cached_with_its_picture(warm_worker, encoded, scene):
    calls, prompt = encoded(warm_worker), "make it green, once"
    first = image(warm_worker, prompt, image=as_text(scene), draw_size="asked")
    assert (
        len(calls) == 2
        and image(warm_worker, prompt, image=as_text(scene), draw_size="asked") == first
        and len(calls) == 2
    )
    other = as_text(scene.rotate(90).point(lambda value: 255 - value))
    assert image(warm_worker, prompt, image=other, draw_size="asked") != first and len(calls) == 4


def test_what_is_kept_is_bounded_and_what_was_not_used_for_longest_goes_first():
    class Pipe:
        def encode_prompt(self, prompt):
            return (torch.zeros(100),)  # 400 bytes

    pipe, cache = Pipe(), PromptCache(1000)
    with cache.caching(pipe, lambda: None):
        for prompt in ("a", "b", "a", "c", "a", "b"):
            pipe.encode_prompt(prompt)
    assert cache.bytes == 800 and (cache.hits, cache.misses) == (2, 4)  # b went for c, and c for b


def test_what_the_pipeline_does_to_a_result_does_not_reach_the_cache():
    class Pipe:
        def encode_prompt(self, prompt):
            return torch.ones(3), None

    pipe, cache = Pipe(), PromptCache(1000)
    for _ in range(3):
        with cache.caching(pipe, lambda: None):
            found, mask = pipe.encode_prompt("a")
        assert found.tolist() == [1, 1, 1] and mask is None
        found.zero_()
    assert (cache.hits, cache.misses) == (2, 1) and "encode_prompt" not in vars(pipe)


def test_a_pipeline_never_gets_what_another_encoded():
    class Pipe:
        def __init__(self, value):
            self.value = value

        def encode_prompt(self, prompt):
            return (torch.full((2,), self.value),)

    cache = PromptCache(1000)
    for value in (1.0, 2.0):
        pipe = Pipe(value)
        with cache.caching(pipe, lambda: None):
            assert pipe.encode_prompt(prompt="a")[0].tolist() == [value, value]
        del pipe


def test_digests_tell_apart_what_differs():
    ones = torch.ones(4)
    values = [ones, ones.bfloat16(), ones.view(2, 2), torch.zeros(4), [ones], None, "a", ["a"], 1, torch.device("cpu")]
    assert len({digest(value) for value in values}) == len(values)
    with pytest.raises(NoDigest):
        digest(object())
