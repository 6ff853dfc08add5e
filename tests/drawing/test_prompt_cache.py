"""Text encodings are reused, bounded, and change no bit of a picture."""

import pytest
import torch

from qwen_worker.drawing.prompt_cache import NoDigest, PromptCache, digest

from ..conftest import as_text, run

SMALL = {"prompt": "a red circle", "width": 256, "height": 256, "num_inference_steps": 2, "seed": 1}


@pytest.fixture
def encoded(warm_worker):
    """The number of times the text encoder has run since the list was last cleared, as its length."""
    encoders = {id(e): e for e in (warm_worker.pipelines.load(task).pipe.text_encoder for task in ("generate", "edit"))}
    calls = []
    hooks = [one.register_forward_hook(lambda *_: calls.append(1)) for one in encoders.values()]
    yield calls
    for hook in hooks:
        hook.remove()


@pytest.fixture
def worker(warm_worker, monkeypatch):
    """worker(max_bytes): the warm worker with a cache of its own."""

    def with_cache(max_bytes):
        monkeypatch.setattr(warm_worker, "prompt_cache", PromptCache(max_bytes))
        return warm_worker

    return with_cache


def image(worker, **fields):
    return run(worker, {**SMALL, **fields})["output"]["image"]


def test_a_repeated_prompt_is_encoded_once_and_draws_the_same_bytes(worker, encoded):
    uncached = image(worker(0))
    assert len(encoded) == 2  # the prompt and the empty negative prompt
    assert image(worker(0)) == uncached and len(encoded) == 4
    one = worker(10_000_000)
    assert image(one) == uncached and len(encoded) == 6
    assert image(one) == uncached and len(encoded) == 6
    image(one, prompt="a blue square")
    assert len(encoded) == 7  # the negative prompt was there


def test_several_pictures_of_a_job_are_encoded_once(worker, encoded):
    image(worker(10_000_000), num_images=3)
    assert len(encoded) == 2


def test_an_edit_is_cached_with_its_picture(worker, encoded, scene):
    fields = {"prompt": "make it green", "image": as_text(scene), "width": 512, "height": 512, "num_inference_steps": 1}
    uncached = image(worker(0), **fields)
    one = worker(50_000_000)
    encoded.clear()
    assert image(one, **fields) == uncached and len(encoded) == 2
    assert image(one, **fields) == uncached and len(encoded) == 2
    other = image(one, **fields | {"image": as_text(scene.rotate(90).point(lambda value: 255 - value))})
    assert other != uncached and len(encoded) == 4


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
