"""Where a job asks for it and the endpoint has a language model, the model draws what that has made of the prompt."""

import asyncio

import pytest
from PIL import Image

from qwen_tiny.world import judge

from ..conftest import as_text, picture_of, posted, respond, run, warnings_of
from ..support.chat_server import ChatServer, completion, send
from ..support.patience import until

CIRCLE = "a large red circle in the center, on a blue background"
SQUARE = "a large green square in the center, on a yellow background"
JOB = {"prompt": CIRCLE, "width": 256, "height": 256, "seed": 7, "num_inference_steps": 12}
SHORT = {"num_inference_steps": 2}  # where nobody looks at the picture
KEY = "sk-s3cr3t"


@pytest.fixture(scope="module")
def served():
    """A chat server for the module, whose answer each test chooses."""
    from ..conftest import serve

    chat = ChatServer()
    server = serve(chat)
    chat.address = f"http://127.0.0.1:{server.server_port}/v1"
    yield chat
    server.shutdown()
    server.server_close()


@pytest.fixture
def chat(served):
    served.text, served.answer, served.asked = SQUARE, None, []
    return served


@pytest.fixture(scope="module")
def worker(warm_workers, served):
    """A warm worker that rewrites."""
    return warm_workers(
        QWEN_REWRITE_URL=served.address, QWEN_REWRITE_MODEL="writer", QWEN_REWRITE_KEY=KEY, QWEN_REWRITE_SECONDS=5
    )


def drawn(worker, **fields):
    body = posted(worker, **{**JOB, **fields})
    assert "error" not in body, body["error"]
    return body["output"]["image"], body["output"]["metadata"]


@pytest.mark.parametrize("name", ["prompt_extend", "enhance_prompt", "enable_prompt_expansion"])
def test_the_model_draws_what_comes_back_and_the_reply_has_both_prompts(worker, chat, name, capsys):
    image, facts = drawn(worker, **{name: True})
    reading = judge.read(picture_of(image))
    assert (reading.colour, reading.shape, reading.background) == ("green", "square", "yellow")
    assert (facts["prompt"], facts["instruction"]) == (CIRCLE, SQUARE) and not warnings_of(facts)
    assert facts["timings"]["rewrite"] > 0 and chat.messages[1] == CIRCLE
    log = capsys.readouterr().out
    assert "square" not in log and "circle" not in log and KEY not in log


def test_the_picture_is_the_one_of_the_rewritten_prompt_and_seed(worker, chat, ask):
    rewritten, _ = drawn(worker, prompt_extend=True, **SHORT)
    assert rewritten == ask(**{**JOB, "prompt": SQUARE, **SHORT})["output"]["image"]


@pytest.mark.parametrize("asked", [{}, {"prompt_extend": False}, {"enhance_prompt": False}])
def test_a_job_that_does_not_ask_sends_its_prompt_nowhere(worker, chat, asked):
    image, facts = drawn(worker, **asked)
    assert chat.asked == [] and "instruction" not in facts and "rewrite" not in facts["timings"]
    assert judge.read(picture_of(image)).shape == "circle"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda handler: respond(handler, b"<html>", 500), "rewriting it failed: HTTP status 500"),
        (lambda handler: send(handler, {"a": 1}), "rewriting it failed: its answer is no chat completion"),
        (lambda handler: send(handler, completion(" ")), "rewriting it failed: its answer is empty"),
        (
            lambda handler: send(handler, completion("a <|image_pad|> circle")),
            "the rewritten one must be Unicode text of at most 20000 characters, without special tokens",
        ),
        (
            lambda handler: send(handler, completion("\ud800 circle")),
            "the rewritten one must be Unicode text of at most 20000 characters, without special tokens",
        ),
        (
            lambda handler: send(handler, completion("a circle " * 5000)),
            "the rewritten one must be Unicode text of at most 20000 characters, without special tokens",
        ),
        (
            lambda handler: send(handler, completion("circle " * 1200)),
            "the rewritten one has 1200 tokens and the model takes at most 1019",
        ),
    ],
)
def test_where_it_fails_the_caller_s_own_words_are_drawn_with_a_warning(worker, chat, ask, answer, reason, capsys):
    chat.answer = answer
    image, facts = drawn(worker, prompt_extend=True, **SHORT)
    (warning,) = warnings_of(facts)
    assert warning.startswith(f"prompt_extend: the prompt is drawn as it is, because {reason}")
    assert len(chat.asked) == 1 and "instruction" not in facts
    assert image == ask(**{**JOB, **SHORT})["output"]["image"] and KEY not in capsys.readouterr().out


def test_an_endpoint_that_hangs_costs_its_deadline(cold_worker, web, gate, ask):
    over = gate()
    address = web(ChatServer(answer=lambda handler: over.wait()))
    worker = cold_worker(QWEN_REWRITE_URL=address, QWEN_REWRITE_MODEL="writer", QWEN_REWRITE_SECONDS=0.5)
    image, facts = drawn(worker, prompt_extend=True, **SHORT)
    assert facts["warnings"][0].endswith("because rewriting it failed: no answer within 0.5 seconds")
    assert 0.4 < facts["timings"]["rewrite"] < 30 and image == ask(**{**JOB, **SHORT})["output"]["image"]


def test_jobs_whose_endpoint_hangs_keep_no_other_job_waiting(cold_worker, web, gate):
    over = gate()
    server = ChatServer(answer=lambda handler: over.wait())
    worker = cold_worker(
        QWEN_REWRITE_URL=web(server), QWEN_REWRITE_MODEL="writer", QWEN_REWRITE_SECONDS=600, QWEN_FALLBACK="force"
    )

    async def answer():
        hanging = [{"id": str(number), "input": {**JOB, "prompt_extend": True}} for number in range(16)]
        tasks = [asyncio.create_task(worker.answer(job)) for job in hanging]
        await until(lambda: len(server.asked) == 16)
        plain = await asyncio.wait_for(worker.answer({"id": "plain", "input": JOB}), 60)
        too_many = {"id": "more", "input": {**JOB, "prompt_extend": True}}
        own_words = await asyncio.wait_for(worker.answer(too_many), 60)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return plain, own_words

    plain, own_words = asyncio.run(answer())
    assert plain["success"] and "16 answers are still being waited for" in own_words["metadata"]["warnings"][0]


def test_a_job_with_a_short_limit_waits_half_of_it_and_draws_its_own_words(cold_worker, web, gate):
    over, messages = gate(), []
    worker = cold_worker(
        QWEN_REWRITE_URL=web(ChatServer(answer=lambda handler: over.wait())), QWEN_REWRITE_MODEL="writer",
        QWEN_REWRITE_SECONDS=600, QWEN_FALLBACK="force", QWEN_PROGRESS_SECONDS=0.01,
    )  # fmt: skip

    async def post(message):
        messages.append(message["stage"])

    job = {"id": "short", "input": {**JOB, "prompt_extend": True}, "policy": {"executionTimeout": 10_000}}
    facts = asyncio.run(worker.answer(job, post))["metadata"]
    assert facts["warnings"][0].startswith("prompt_extend: the prompt is drawn as it is, because rewriting it failed: ")
    assert 3 < facts["timings"]["rewrite"] < 7 and "rewriting" in messages


def test_a_stop_is_heard_while_the_endpoint_is_silent(cold_worker, web, gate):
    asked, over = gate(), gate()
    address = web(ChatServer(answer=lambda handler: asked.set() or over.wait()))
    worker = cold_worker(QWEN_REWRITE_URL=address, QWEN_REWRITE_MODEL="writer", QWEN_REWRITE_SECONDS=600)

    async def stop():
        task = asyncio.create_task(worker.answer({"id": "stopped", "input": {**JOB, "prompt_extend": True}}))
        await until(asked.is_set)
        task.cancel()
        await until(task.done)
        assert task.cancelled()

    asyncio.run(stop())
    assert worker.pipelines.loaded == {}


def test_it_happens_while_another_job_is_drawn(worker, chat, gate):
    drawn(worker, **SHORT)
    release = gate()
    worker.inference_thread.submit(release.wait)

    async def answer():
        task = asyncio.create_task(worker.answer({"id": "next", "input": {**JOB, **SHORT, "prompt_extend": True}}))
        await until(lambda: worker.queue.waiting)
        asked = len(chat.asked)
        release.set()
        return asked, await task

    asked, reply = asyncio.run(answer())
    assert asked == 1 and reply["metadata"]["instruction"] == SQUARE


def test_an_edit_sends_its_pictures_scaled_down(worker, chat):
    chat.text = "change the background to green"
    scene = Image.new("RGB", (2000, 1000), "blue")
    scene.paste("red", (800, 300, 1200, 700))
    asked = {"width": 512, "height": 256, "draw_size": "asked"}
    _, facts = drawn(worker, prompt="greener please", image=as_text(scene), prompt_extend=True, **asked)
    assert facts["instruction"] == chat.text
    system, (sent, text) = chat.messages
    assert "edits pictures" in system and text == {"type": "text", "text": "greener please"}
    start, _, data = sent["image_url"]["url"].partition(",")
    assert start == "data:image/jpeg;base64" and picture_of(data).size == (768, 384)


def test_a_background_s_whole_instruction_is_rewritten(worker, chat, scene):
    chat.text = "change the background to green"
    _, facts = drawn(
        worker,
        task="background_replacement",
        prompt="grass",
        image=as_text(scene),
        prompt_extend=True,
        draw_size="asked",
        **SHORT,
    )
    assert (facts["prompt"], facts["instruction"]) == ("grass", chat.text)
    assert chat.messages[1][1]["text"].startswith("Replace the background of the image with grass. Keep")


def test_a_preset_and_the_job_s_own_fields_are_as_without(worker, chat):
    preset = {"preset": "balanced", "num_images": 2, "num_inference_steps": None}
    _, plain = drawn(worker, **preset)
    _, rewritten = drawn(worker, **preset, prompt_extend=True)
    for name in ("preset", "steps", "guidance_scale", "seeds", "step_cache"):
        assert rewritten[name] == plain[name]


def test_the_encoding_of_a_rewritten_prompt_is_kept(worker, chat):
    drawn(worker, prompt=SQUARE, **SHORT)
    before = worker.prompt_cache.misses
    drawn(worker, prompt_extend=True, **SHORT)
    assert worker.prompt_cache.misses == before


def test_jobs_that_share_a_call_have_their_own_words_each(cold_worker, chat, gate):
    rewriting = {"QWEN_REWRITE_URL": chat.address, "QWEN_REWRITE_MODEL": "writer"}
    worker, release = cold_worker(QWEN_BATCH=2, **rewriting), gate()
    drawn(worker, **SHORT)
    worker.inference_thread.submit(release.wait)

    async def answer():
        jobs = [{"id": name, "input": {**JOB, "prompt_extend": name == "rewritten"}} for name in ("plain", "rewritten")]
        tasks = [asyncio.create_task(worker.answer(job)) for job in jobs]
        await until(lambda: len(worker.queue.waiting) == 2)
        release.set()
        return [await task for task in tasks]

    replies = asyncio.run(answer())
    assert [reply["metadata"]["batch"] for reply in replies] == [2, 2]
    assert [judge.read(picture_of(reply["image"])).shape for reply in replies] == ["circle", "square"]
    assert "instruction" not in replies[0]["metadata"] and replies[1]["metadata"]["instruction"] == SQUARE


def test_openai_s_clients_may_ask_for_it(worker, chat):
    asked = {"prompt": CIRCLE, "size": "256x256", "seed": 7, "enhance_prompt": True, **SHORT}
    output = run(worker, {"openai_route": "/v1/images/generations", "openai_input": asked})["output"]
    assert output["metadata"]["instruction"] == SQUARE


def test_debug_shows_neither_the_address_nor_the_key(worker):
    settings = posted(worker, task="debug")["output"]["settings"]
    assert settings["QWEN_REWRITE_URL"] == settings["QWEN_REWRITE_KEY"] == "set"
