"""Pictures leave in the reply or by URL from a bucket, never above the limit, and no key leaks. Against moto's S3."""

import asyncio
import base64
import functools
import io
import json
import re
import threading
import time

import boto3
import pytest
import requests
from matplotlib.cbook import get_sample_data
from PIL import Image

from qwen_worker.delivery_settings import Delivery, ResponseShape
from qwen_worker.errors import Cancelled, JobError
from qwen_worker.jobs.parsing import parse
from qwen_worker.jobs.reply import posted_bytes
from qwen_worker.network import bucket as buckets
from qwen_worker.network.bucket import Misconfigured
from qwen_worker.pictures.delivery import Terms, deliver, size_warning, terms_of
from qwen_worker.pictures.encoding import encode_picture
from qwen_worker.pictures.encodings import LEAST_RATES, encodings_for, photo_rate
from qwen_worker.settings import Settings

from ..conftest import ROOT, file_of, picture_of, respond, run
from ..support.control_plane import ControlPlane, WorkerProcess, addresses

SMALL = {"prompt": "a", "width": 256, "height": 256}
KEY, SECRET = "AKIAOPERATOR", "very/secret+words"
MB = 1_000_000
NO_URL = "stand-ins are sent in the reply and never by URL"


@pytest.fixture(scope="module")
def s3():
    """The address of moto's S3 server with the bucket `pictures` in it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://127.0.0.1:{port}"
    client = boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1"
    )
    client.create_bucket(Bucket="pictures")
    yield address
    server.stop()


@pytest.fixture
def operator(s3):
    """operator(**changes): settings with the bucket of the server."""
    standard = {
        "BUCKET_ENDPOINT_URL": s3, "BUCKET_NAME": "pictures", "BUCKET_ACCESS_KEY_ID": KEY,
        "BUCKET_SECRET_ACCESS_KEY": SECRET, "QWEN_UPLOAD_SECONDS": 20,
    }  # fmt: skip
    return lambda **changes: {**standard, **changes}


@functools.cache
def noise(side):
    return Image.merge("RGB", [Image.effect_noise((side, side), 80) for _ in range(3)])


def sent(pictures, settings, fields=None, job=None, limit=10 * MB):
    request = parse({**SMALL, **(fields or {})}, "job")
    job = {"id": "job-1", **(job or {})}
    terms = terms_of(job, request, settings, limit, buckets.bucket_from_settings(settings))
    facts = {
        "backend": "qwen-image", "prompt": request.prompt, "model": "m", "revision": None, "seed": request.seed,
        "width": pictures[0].width, "height": pictures[0].height, "timings": {"inference": 1.0}, "processing_time": 1.0,
    }  # fmt: skip
    return deliver(request, pictures, terms, lambda more: facts | more, {}, threading.Event())


@pytest.mark.parametrize("shape", ResponseShape)
def test_the_size_is_that_of_the_body_which_the_sdk_posts(web, monkeypatch, shape):
    import aiohttp
    from runpod.serverless.modules import rp_http

    sizes = []
    address = web(lambda handler: (sizes.append(int(handler.headers["Content-Length"])), respond(handler, b"{}")))
    monkeypatch.setattr(rp_http, "JOB_DONE_URL", f"{address}/done/$ID?x=1")
    reply = sent([noise(64), noise(32)], Settings(), {"prompt": 'ein "Würfel" 魚\n', "response_shape": shape})

    async def post():
        async with aiohttp.ClientSession() as session:
            await rp_http.send_result(session, {"output": reply}, {"id": "a"})

    asyncio.run(post())
    assert sizes == [posted_bytes(reply)]


@pytest.mark.parametrize("shape", ResponseShape)
@pytest.mark.parametrize("spare", [0, -1])
def test_the_limit_holds_to_the_byte(spare, shape):
    fields = {"response_shape": shape}
    size = posted_bytes(sent([noise(64)], Settings(), {"output_format": "png", **fields}))
    if spare == 0:
        assert posted_bytes(sent([noise(64)], Settings(), fields, limit=size)) == size
    else:
        with pytest.raises(JobError, match=r"result_too_large: the reply has 0.0\d MB and at most 0.0"):
            sent([noise(64)], Settings(), {"output_format": "png", **fields}, limit=size - 1)


@pytest.mark.parametrize("shape", [shape for shape in ResponseShape if shape is not ResponseShape.WORKER])
def test_in_the_shapes_of_other_apis_pictures_are_urls_of_the_bucket_where_there_is_one(operator, shape):
    fields = {"response_shape": shape}
    assert "data:" not in json.dumps(sent([noise(16)], Settings(**operator()), fields))
    reply = sent([noise(16)], Settings(**operator(QWEN_RESPONSE_SHAPE=shape)), {"delivery": "auto"})
    assert reply["metadata"]["delivery"] == "url"
    url = re.search(r'"(http://[^"]*/0\.png[^"]*)"', json.dumps(reply))[1]
    assert picture_of(base64.b64encode(requests.get(url).content)).tobytes() == noise(16).tobytes()
    inline = sent([noise(16)], Settings(**operator()), {**fields, "delivery": "inline"})
    assert "data:image/png;base64," in json.dumps(inline) and inline["metadata"]["delivery"] == "inline"
    without = sent([noise(16)], Settings(**operator(BUCKET_ENDPOINT_URL="http://127.0.0.1:9")), fields)
    assert "data:image/png;base64," in json.dumps(without) and "did not take" in without["metadata"]["delivery_note"]


def test_a_picture_that_stands_twice_in_a_reply_is_counted_twice():
    request = parse({**SMALL, "width": 512, "height": 512, "output_format": "png"}, "job")
    for shape, words in (("worker", None), ("fal", None), ("runpod-public", "may have 1.2 MB in the reply")):
        shaped = request.model_copy(update={"response_shape": shape})
        warning = size_warning(shaped, (512, 512), terms_of({}, shaped, Settings(), 800_000, None))
        assert warning is None if words is None else words in warning


def test_a_result_of_25_mb_goes_to_the_bucket(operator):
    pictures = [noise(1440), noise(1440)]
    assert posted_bytes(sent(pictures, Settings(), limit=100 * MB)) > 24 * MB
    reply = sent(pictures, Settings(**operator()))
    assert posted_bytes(reply) < 5000 and "image" not in reply
    assert reply["metadata"]["delivery"] == "url" and reply["image_url"] == reply["image_urls"][0]
    for url, picture in zip(reply["image_urls"], pictures, strict=True):
        answer = requests.get(url)
        assert answer.headers["Content-Type"] == "image/png"
        assert picture_of(base64.b64encode(answer.content)).tobytes() == picture.tobytes()


def test_a_result_of_25_mb_without_a_bucket_goes_as_webp_where_the_job_asks_for_no_format():
    reply = sent([noise(1440), noise(1440)], Settings())
    assert picture_of(reply["image"]).format == "WEBP" and reply["metadata"]["output_format"] == "webp"
    assert posted_bytes(reply) <= 10 * MB


def test_a_result_of_25_mb_is_else_refused_with_both_figures():
    with pytest.raises(JobError, match=r"result_too_large: the reply has 24\.\d\d MB and at most 10 MB are delivered"):
        sent([noise(1440), noise(1440)], Settings(), {"output_format": "png"})


def test_a_result_of_16_mb_through_a_worker_process_is_never_dropped(environment, operator, web):
    """Stand-ins of edits, which the bucket does not get; it gets the pictures of the model."""
    plane, file = ControlPlane(), file_of(noise(1440))
    variables = {name: str(value) for name, value in operator(QWEN_EDIT_MODEL="/nowhere").items()}
    private = {"RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true"}
    large = {
        "prompt": "invert it", "image_url": web(lambda handler: respond(handler, file)), "size": "1440x1440",
        "num_images": 2,
    }  # fmt: skip
    with WorkerProcess(environment(**variables, **private, **addresses(web(plane)))) as worker:
        plane.put("bucket", {**SMALL, "num_inference_steps": 1, "delivery": "url"})
        plane.put("webp", large)
        plane.put("refused", large | {"output_format": "png"})
        by_bucket, as_webp, refused = (plane.result(job_id) for job_id in ("bucket", "webp", "refused"))
        assert worker.terminate() == 0
    received = Image.open(io.BytesIO(requests.get(by_bucket["output"]["image_url"]).content))
    assert received.size == (256, 256) and "trainedAlgorithmicMedia" in json.dumps(received.getxmp())
    assert as_webp["output"]["metadata"]["delivery_note"] == NO_URL
    assert as_webp["output"]["metadata"]["output_format"] == "webp"
    assert [picture_of(text).size for text in as_webp["output"]["images"]] == [(1440, 1440)] * 2
    assert re.fullmatch(
        r"result_too_large: the reply has 1[56]\.\d\d MB and at most 9\.5 MB are delivered; .*", refused["error"]
    )
    assert plane.refused == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"output_format": "png"}, "output_format png: 1 picture of 512x512 may have 0.59 MB in the reply"),
        ({"output_format": "webp", "num_images": 4}, "output_format webp: 4 pictures of 512x512 may have 2.3 MB"),
        ({"output_format": "png", "delivery": "url"}, None),  # by a bucket
        ({"output_format": "webp", "output_quality": 90}, None),
        ({"output_format": "jpeg"}, None),
        (
            {"output_format": "jpeg", "output_quality": 100, "num_images": 4},
            "output_format jpeg: 4 pictures of 512x512 ",
        ),
        (
            {"output_format": "webp", "output_quality": 100, "num_images": 4},
            "512x512 may have 0.75 MB in the reply, of",
        ),
        ({}, None),
        ({"num_images": 4}, None),
        ({"num_images": 4, "output_quality": 100}, "auto: 4 pictures of 512x512 may have 0.75 MB in the reply in its "),
    ],
)
def test_a_reply_that_may_be_too_large_is_told_before_it_is_drawn(cold_worker, operator, fields, words):
    """And is sent where it is not: how large a PNG gets nobody knows before."""
    bucket = operator() if "delivery" in fields else {}
    worker = cold_worker(QWEN_FALLBACK="force", QWEN_RESULT_LIMIT_MB=0.5, **bucket)
    warnings = run(worker, {**SMALL, "width": 512, "height": 512, **fields})["output"]["metadata"]["warnings"]
    assert len(warnings) == 1 + (words is not None)  # one says that the picture is a stand-in
    assert not words or (words in warnings[0] and "at most 0.5 MB" in warnings[0])


@pytest.mark.parametrize("fields", [{"output_format": "jpeg", "output_quality": 1}, {"output_format": "png"}])
def test_a_reply_that_is_too_large_whatever_is_drawn_is_refused_before(cold_worker, fields):
    worker = cold_worker(QWEN_FALLBACK="force", QWEN_RESULT_LIMIT_MB=0.05)
    large = {**SMALL, "width": 2048, "height": 2048, "num_images": 4, **fields}
    error = run(worker, large)["error"]
    assert re.match(r"result_too_large: 4 pictures of 2048x2048 would have at least 0\.(39|44) MB", error)
    assert "at most 0.05 MB are delivered; ask for fewer images or a smaller size, or give a bucket" in error


@pytest.mark.parametrize(
    ("output_format", "quality"),
    [
        ("png", None),
        ("webp", None),
        ("jpeg", None),
        ("jpeg", 50),
        ("jpeg", 100),
        ("webp", 50),
        ("webp", 75),
        ("webp", 90),
    ],
)
def test_a_photograph_has_about_the_bytes_that_are_expected_and_noise_more_and_one_colour_the_least(
    output_format, quality
):
    def rate(picture):
        return len(encode_picture(picture, output_format, quality)) / (picture.width * picture.height)

    with get_sample_data("grace_hopper.jpg") as file:
        photo = Image.open(file).convert("RGB")
    assert rate(photo) == pytest.approx(photo_rate(output_format, quality), rel=0.35)
    assert 1.5 < rate(noise(512)) / photo_rate(output_format, quality) < 7
    assert rate(Image.new("RGB", (2048, 2048), (90, 120, 30))) >= LEAST_RATES[output_format]


def test_auto_never_goes_below_the_quality_asked_for():
    request = parse({**SMALL, "output_format": "auto", "output_quality": 90}, "job")
    assert list(encodings_for(request, (512, 512))) == [("png", None), ("webp", None), ("webp", 95), ("webp", 90)]
    with pytest.raises(JobError, match="result_too_large"):
        sent([noise(512)], Settings(), {"output_format": "auto", "output_quality": 90}, limit=30_000)


@pytest.mark.parametrize("way", ["field", "setting", "s3Config", "size"])
def test_a_stand_in_is_never_sent_by_url_whoever_wants_it(cold_worker, web, monkeypatch, way):
    """Code that reads `image_url` and nothing else would take it for a picture."""
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    asked, file = [], file_of(noise(512))
    address = web(lambda handler: (asked.append(handler.path), respond(handler, b"", 200, ETag='"x"')))
    settings = {
        "BUCKET_ENDPOINT_URL": address, "BUCKET_NAME": "pictures", "BUCKET_ACCESS_KEY_ID": KEY,
        "BUCKET_SECRET_ACCESS_KEY": SECRET, "QWEN_FALLBACK": "force",
    }  # fmt: skip
    settings |= {"setting": {"QWEN_DELIVERY": "url"}, "size": {"QWEN_RESULT_LIMIT_MB": 0.1}}.get(way, {})
    fields = {"prompt": "invert it", "image": base64.b64encode(file).decode("ascii")}
    fields |= {"delivery": "url"} if way == "field" else {}
    output = run_job(cold_worker(**settings), config(address) if way == "s3Config" else {}, **fields)["output"]
    assert asked == [] and not any("url" in name for name in output) and picture_of(output["image"]).size == (256, 256)
    facts = output["metadata"]
    assert (facts["backend"], facts["delivery"]) == ("pil-fallback", "inline")
    assert facts["delivery_note"] == NO_URL
    assert facts["output_format"] == ("webp" if way == "size" else "png")


def test_a_stand_in_that_fits_needs_no_note_and_one_too_large_is_refused_without_asking_for_a_bucket(
    cold_worker, operator
):
    worker = cold_worker(**operator(QWEN_FALLBACK="force", QWEN_RESULT_LIMIT_MB=0.1))
    noisy = {"prompt": "invert it", "image": base64.b64encode(file_of(noise(512))).decode("ascii")}
    assert "delivery_note" not in run(worker, SMALL)["output"]["metadata"]
    error = run(worker, {**noisy, "output_format": "png", "delivery": "url"})["error"]
    assert re.fullmatch(
        r"result_too_large: the reply has \d\.\d\d MB and at most 0\.1 MB are delivered; ask for output_format auto, "
        rf"or jpeg or webp with output_quality, fewer images or a smaller size; {NO_URL}",
        error,
    )


def test_a_small_result_stays_in_the_reply_unless_the_job_or_the_endpoint_wants_a_url(operator):
    assert "image" in sent([noise(16)], Settings(**operator()))
    assert "image_url" in sent([noise(16)], Settings(**operator()), {"delivery": "url"})
    assert "image_url" in sent([noise(16)], Settings(**operator(QWEN_DELIVERY="url")))
    assert "image" in sent([noise(16)], Settings(**operator(QWEN_DELIVERY="url")), {"delivery": "inline"})
    with pytest.raises(JobError, match="result_too_large"):
        sent([noise(64)], Settings(**operator()), {"delivery": "inline"}, limit=1000)
    with pytest.raises(JobError, match="invalid_input: delivery 'url' needs a bucket"):
        sent([noise(16)], Settings(), {"delivery": "url"})


def test_keys_follow_from_the_job_and_a_second_delivery_overwrites(operator, s3):
    settings = Settings(**operator(BUCKET_PREFIX="shop/", BUCKET_KEY="{task}/{job_id}-{index}.{extension}"))
    urls = [sent([noise(16)], settings, {"delivery": "url", "output_format": "webp"})["image_url"] for _ in range(2)]
    assert [url.split("?")[0] for url in urls] == [f"{s3}/pictures/shop/generate/job-1-0.webp"] * 2
    strange = [sent([noise(16)], settings, {"delivery": "url"}, {"id": name})["image_url"] for name in ("../a", "..-a")]
    assert "/.." not in "".join(strange) and len({url.split("?")[0] for url in strange}) == 2


def test_a_public_address_replaces_the_presigned_url(operator):
    settings = Settings(**operator(BUCKET_PUBLIC_URL="https://cdn.example.com/x/"))
    assert sent([noise(16)], settings, {"delivery": "url"})["image_url"] == "https://cdn.example.com/x/job-1/0.png"


def test_what_is_asked_of_the_bucket(operator, web):
    seen = []

    def answer(handler):
        seen.append((handler.path, dict(handler.headers)))
        handler.rfile.read(int(handler.headers["Content-Length"]))
        respond(handler, b"", 200, ETag='"x"')

    changes = {"BUCKET_ENDPOINT_URL": web(answer) + "/pictures", "BUCKET_NAME": None, "BUCKET_REGION": "eu-x"}
    url = sent([noise(16)], Settings(**operator(**changes)), {"delivery": "url"})["image_url"]
    path, headers = seen[0]
    assert path == "/pictures/job-1/0.png" and headers["Content-Type"] == "image/png"
    assert "/eu-x/s3/aws4_request" in headers["Authorization"] and "X-Amz-Expires=604800" in url
    assert not [name for name in headers if "checksum" in name.lower() or "trailer" in name.lower()]


# When the bucket fails


def no_secret_in(text):
    assert SECRET not in text and "Traceback" not in text


def test_a_bucket_that_is_down_falls_back_to_the_reply_and_says_so(operator, capsys):
    settings = Settings(**operator(BUCKET_ENDPOINT_URL="http://127.0.0.1:9"))
    reply = sent([noise(16)], settings, {"delivery": "url"})
    assert reply["metadata"]["delivery"] == "inline" and picture_of(reply["image"]).size == (16, 16)
    assert reply["metadata"]["delivery_note"] == "the bucket did not take the pictures (EndpointConnectionError)"
    with pytest.raises(
        JobError, match=r"upload_failed: the bucket did not .* and the reply has 0.02 MB and at most"
    ) as caught:
        sent([noise(64)], settings, {"output_format": "png"}, limit=10_000)
    no_secret_in(json.dumps(reply) + str(caught.value) + "".join(capsys.readouterr()))


def test_a_bucket_that_is_down_leaves_auto_its_smaller_encodings(operator):
    settings = Settings(**operator(BUCKET_ENDPOINT_URL="http://127.0.0.1:9"))
    reply = sent([noise(128)], settings, limit=40_000)
    assert reply["metadata"]["output_format"] == "webp" and "did not take" in reply["metadata"]["delivery_note"]


def test_a_bucket_that_refuses_is_named_by_its_code_alone(operator):
    settings = Settings(**operator(BUCKET_NAME="no-such-bucket"))
    assert sent([noise(16)], settings, {"delivery": "url"})["metadata"]["delivery_note"].endswith("(NoSuchBucket)")


def test_a_bucket_that_does_not_answer_is_not_waited_for_longer_than_allowed(operator, gate):
    settings = Settings(**operator(BUCKET_ENDPOINT_URL=silent(gate()), QWEN_UPLOAD_SECONDS=1))
    started = time.monotonic()
    reply = sent([noise(16)], settings, {"delivery": "url"})
    assert time.monotonic() - started < 30 and "not done within 1 seconds" in reply["metadata"]["delivery_note"]


def silent(held, heard=lambda: None):
    """The address of a server that takes a connection, calls `heard` and says nothing until `held` is set."""
    import socket

    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        connections = []
        listener.settimeout(0.1)
        while not held.is_set():
            try:
                connections.append(listener.accept()[0])
                heard()
            except TimeoutError:
                continue
        for one in (*connections, listener):
            one.close()

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_a_stop_during_an_upload_is_heard_at_once(operator, gate):
    cancelled = threading.Event()
    settings = Settings(**operator(BUCKET_ENDPOINT_URL=silent(gate(), cancelled.set)))
    request = parse({**SMALL, "delivery": "url"}, "job")
    terms = Terms(
        Delivery.URL, buckets.bucket_from_settings(settings), 10 * MB, 60, "job-1", ResponseShape.WORKER
    )  # fmt: skip
    started = time.monotonic()
    with pytest.raises(Cancelled):
        deliver(request, [noise(16)], terms, lambda more: {"backend": "qwen-image", **more}, {}, cancelled)
    assert time.monotonic() - started < 30


# A job's own bucket


def config(address, **changes):
    return {"s3Config": {
        "accessId": "AKIAJOB", "accessSecret": SECRET, "bucketName": "pictures", "endpointUrl": address, **changes,
    }}  # fmt: skip


def test_a_job_s_own_bucket_gets_its_pictures(cold_worker, s3, monkeypatch, capsys):
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    body = run_job(cold_worker(), config(s3, prefix="theirs/"), num_inference_steps=1)
    url = body["output"]["image_url"]
    assert (
        url.startswith(f"{s3}/pictures/theirs/own-1/0.png?") and "AKIAJOB" in url
    )  # a presigned URL names the key's id
    assert requests.get(url).content[:4] == b"\x89PNG"
    no_secret_in(json.dumps(body) + "".join(capsys.readouterr()))


def run_job(worker, more, **fields):
    from runpod.serverless.modules.rp_job import run_job as sdk_s

    return asyncio.run(sdk_s(worker.answer, {"id": "own-1", "input": {**SMALL, **fields}, **more}))


@pytest.mark.parametrize(
    ("body", "headers"), [(b"<Error>", {"Content_Length": "100"}), (b"no gzip", {"Content_Encoding": "gzip"})]
)
def test_a_job_s_own_bucket_that_breaks_off_its_answer_leaves_the_pictures_in_the_reply(web, body, headers):
    asked = []

    def answer(handler):
        asked.append(handler.rfile.read(int(handler.headers["Content-Length"])))
        respond(handler, body, **headers)

    reply = sent([noise(16)], Settings(QWEN_UPLOAD_SECONDS=20), job=config(web(answer)))
    assert picture_of(reply["image"]).size == (16, 16) and len(asked) == 3  # as often as one that is down
    assert reply["metadata"]["delivery_note"] == "the bucket did not take the pictures (EndpointConnectionError)"


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9", "http://169.254.169.254", "http://[::1]", "http://10.0.0.1"]
)
def test_a_job_s_own_bucket_is_reached_at_public_addresses_only(cold_worker, endpoint):
    body = run_job(cold_worker(QWEN_FALLBACK="force"), config(endpoint))
    assert body["error"] == "invalid_input: s3Config.endpointUrl must lead to a public address"


def test_a_name_that_leads_elsewhere_after_it_was_checked_is_not_followed(cold_worker, s3, monkeypatch, capsys):
    """The address rules hold for every connection: the check at the start is not the last."""
    import qwen_worker.pictures.delivery as module

    monkeypatch.setattr(module, "require_public", lambda *_: None)
    body = run_job(cold_worker(), config(s3), num_inference_steps=1)
    assert body["output"]["metadata"]["delivery_note"] == "the bucket did not take the pictures (SSRFError)"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "task=" in line]
    assert line.startswith("WARN") and line.endswith("code=ok (the bucket did not take the pictures (SSRFError))")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"bucketName": "../x"}, "s3Config.bucketName must be 3 to 63 characters: a-z"),
        ({"accessSecret": None}, "s3Config.accessSecret is required"),
        ({"accessId": 7}, "s3Config.accessId must be a text"),
        ({"prefix": "/a"}, "s3Config.prefix must be at most 200"),
        ({"endpointUrl": "ftp://example.com"}, "s3Config.endpointUrl must be an http or https URL"),
        ({"endpointUrl": f"https://x:{SECRET}@example.com"}, "s3Config.endpointUrl"),
        ({"endpointUrl": "https://example.com:port"}, "s3Config.endpointUrl is not a valid URL"),
        ({SECRET: 1}, "s3Config takes only accessId"),
    ],
)
def test_an_s3_config_that_cannot_be_used_is_refused_by_the_field_alone(cold_worker, changes, sentence, capsys):
    body = run_job(cold_worker(QWEN_FALLBACK="force"), config("https://example.com", **changes))
    assert body["error"].startswith(f"invalid_input: {sentence}")
    no_secret_in(json.dumps(body) + "".join(capsys.readouterr()))


@pytest.mark.parametrize(
    ("url", "name", "found"),
    [
        (
            "https://shop.s3.eu-central-1.amazonaws.com",
            "",
            ("https://s3.eu-central-1.amazonaws.com", "shop", "eu-central-1"),
        ),
        ("https://shop.s3.amazonaws.com", "", ("https://s3.amazonaws.com", "shop", "us-east-1")),
        ("https://s3.us-west-2.amazonaws.com/shop", "", ("https://s3.us-west-2.amazonaws.com", "shop", "us-west-2")),
        ("https://abc.r2.cloudflarestorage.com", "shop", ("https://abc.r2.cloudflarestorage.com", "shop", "auto")),
        ("http://[2001:db8::1]:9000", "shop", ("http://[2001:db8::1]:9000", "shop", "us-east-1")),
        (
            "https://s3api-eu-ro-1.runpod.io/",
            "abcdefghij",
            ("https://s3api-eu-ro-1.runpod.io", "abcdefghij", "EU-RO-1"),
        ),
        ("https://s3api-eur-is-1.runpod.io/vol1", "", ("https://s3api-eur-is-1.runpod.io", "vol1", "EUR-IS-1")),
        (
            "https://shop.s3.us-west-004.backblazeb2.com",
            "",
            ("https://s3.us-west-004.backblazeb2.com", "shop", "us-west-004"),
        ),
        (
            "https://s3.eu-central-2.wasabisys.com",
            "shop",
            ("https://s3.eu-central-2.wasabisys.com", "shop", "eu-central-2"),
        ),
        ("https://s3.wasabisys.com", "shop", ("https://s3.wasabisys.com", "shop", "us-east-1")),
        ("https://shop.nyc3.digitaloceanspaces.com", "shop", ("https://nyc3.digitaloceanspaces.com", "shop", "nyc3")),
        (
            "https://abc.eu.r2.cloudflarestorage.com/shop",
            "",
            ("https://abc.eu.r2.cloudflarestorage.com", "shop", "auto"),
        ),
        (
            "https://shop.s3.cn-north-1.amazonaws.com.cn",
            "",
            ("https://s3.cn-north-1.amazonaws.com.cn", "shop", "cn-north-1"),
        ),
        (
            "https://abc.supabase.co/storage/v1/s3",
            "shop",
            ("https://abc.supabase.co/storage/v1/s3", "shop", "us-east-1"),
        ),
        ("https://example.com/minio/shop/", "shop", ("https://example.com/minio", "shop", "us-east-1")),
        ("https://minio.example.com:9000", "shop", ("https://minio.example.com:9000", "shop", "us-east-1")),
        ("http://minio:9000/shop", "", ("http://minio:9000", "shop", "us-east-1")),
    ],
)
def test_endpoints_name_buckets_and_regions_in_several_ways(url, name, found):
    assert buckets.split_endpoint(url, name) == found


@pytest.mark.parametrize(
    ("host", "region"),
    [
        ("s3-us-west-2.amazonaws.com", "us-west-2"),
        ("s3-external-1.amazonaws.com", "us-east-1"),
        ("s3.dualstack.eu-west-3.amazonaws.com", "eu-west-3"),
        ("s3-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("s3-fips.dualstack.ca-central-1.amazonaws.com", "ca-central-1"),
        ("s3-accesspoint.eu-central-1.amazonaws.com", "eu-central-1"),
        ("s3-accelerate.amazonaws.com", "us-east-1"),
        ("s3-accelerate.dualstack.amazonaws.com", "us-east-1"),
        ("bucket.vpce-0a1b-2c3d.s3.eu-north-1.vpce.amazonaws.com", "eu-north-1"),
        ("s3.eusc-de-east-1.amazonaws.eu", "eusc-de-east-1"),
        ("s3.eu-central-003.backblazeb2.com", "eu-central-003"),
        (f"{'0a' * 16}.r2.cloudflarestorage.com", "auto"),
        (f"{'0a' * 16}.eu.r2.cloudflarestorage.com", "auto"),
        (f"{'0a' * 16}.fedramp.r2.cloudflarestorage.com", "auto"),
        ("fra1.digitaloceanspaces.com", "fra1"),
        ("fsn1.your-objectstorage.com", "fsn1"),
        ("nbg1.your-objectstorage.com", "nbg1"),
        ("s3.eu-central-1.ionoscloud.com", "de"),
        ("s3-eu-central-2.ionoscloud.com", "eu-central-2"),
        ("s3.us-central-1.ionoscloud.com", "us-central-1"),
        ("us-east-1.linodeobjects.com", "us-east-1"),
        ("fr-par-1.linodeobjects.com", "fr-par-1"),
        ("us-iad-10.linodeobjects.com", "us-iad-10"),
        ("s3.gra.io.cloud.ovh.net", "gra"),
        ("s3.eu-west-par.io.cloud.ovh.net", "eu-west-par"),
        ("s3.bhs.perf.cloud.ovh.net", "bhs"),
        ("s3.gra.cloud.ovh.net", "gra"),
        ("s3.us-east-va.io.cloud.ovh.us", "us-east-va"),
        ("s3.fr-par.scw.cloud", "fr-par"),
        ("s3.nl-ams.scw.cloud", "nl-ams"),
        ("ewr1.vultrobjects.com", "ewr1"),
        ("s3.ap-southeast-2.wasabisys.com", "ap-southeast-2"),
    ],
)
def test_the_region_is_the_one_that_a_service_s_host_names(host, region):
    """With the bucket before it, after it, and beside it."""
    found = f"https://{host}", "my.shop", region
    assert buckets.split_endpoint(f"https://{host}", "my.shop") == found
    assert buckets.split_endpoint(f"https://my.shop.{host}", "") == found
    assert buckets.split_endpoint(f"https://{host}/my.shop", "") == found


def test_the_services_whose_hosts_are_known_are_those_of_the_docs():
    page = (ROOT / "docs/operating.md").read_text().split("## The bucket")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(buckets.HOSTS)


@pytest.mark.parametrize(
    "host",
    [
        "shop.fra1.cdn.digitaloceanspaces.com",
        f"pub-{'0a' * 16}.r2.dev",
        "d111111abcdef8.cloudfront.net",
        "shop.b-cdn.net",
        "f004.backblazeb2.com",
        "shop.s3-website-us-east-1.amazonaws.com",
        "shop.s3-website.eu-central-1.amazonaws.com",
        "shop.website-us-east-1.linodeobjects.com",
        "shop.s3-website.fr-par.scw.cloud",
    ],
)
def test_an_address_that_takes_no_files_is_refused_before_anything_is_drawn(cold_worker, host):
    body = run_job(cold_worker(QWEN_FALLBACK="force"), config(f"https://{host}"))
    assert body["error"] == (
        "invalid_input: s3Config.endpointUrl is the address of a CDN or website, which takes no files: give that of "
        "the S3 service"
    )


@pytest.mark.parametrize(
    ("url", "name", "sentence"),
    [
        ("https://shop.s3.amazonaws.com", "other", "names another bucket than the one given beside it"),
        ("https://s3api-eu-ro-1.runpod.io/vol1", "vol2", "names another bucket than the one given beside it"),
        ("https://s3.us-west-2.amazonaws.com/a/shop", "shop", "must have no path beyond the bucket's name"),
        ("https://example.com/../shop", "shop", "must have a path of at most 10 names"),
        ("https://example.com/a//shop", "shop", "must have a path of at most 10 names"),
        ("https://example.com/%2e%2e/shop", "shop", "must have a path of at most 10 names"),
        ("https://example.com" + "/a" * 12, "shop", "must have a path of at most 10 names"),
    ],
)
def test_an_endpoint_that_no_service_has_is_refused(url, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        buckets.split_endpoint(url, name)


def test_a_region_in_capitals_is_what_requests_are_signed_for(web):
    """As RunPod's storage calls its regions."""
    seen = []

    def answer(handler):
        seen.append((handler.path, handler.headers["Authorization"]))
        handler.rfile.read(int(handler.headers["Content-Length"]))
        respond(handler, b"", 200, ETag='"x"')

    own = config(web(answer) + "/storage/v1/s3", bucketName="abcdefghij", region="EU-RO-1")
    url = sent([noise(16)], Settings(), job=own)["image_url"]
    ((path, signature),) = seen
    assert path == "/storage/v1/s3/abcdefghij/job-1/0.png" and "/EU-RO-1/s3/aws4_request" in signature
    assert "/storage/v1/s3/abcdefghij/job-1/0.png?" in url and "EU-RO-1" in url


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"BUCKET_SECRET_ACCESS_KEY": None}, "BUCKET_SECRET_ACCESS_KEY"),
        ({"BUCKET_NAME": None}, "BUCKET_NAME"),
        ({"BUCKET_ENDPOINT_URL": f"https://x:{SECRET}@example.com"}, "BUCKET_ENDPOINT_URL"),
        ({"BUCKET_ENDPOINT_URL": None, "QWEN_DELIVERY": "url"}, "QWEN_DELIVERY"),
    ],
)
def test_settings_of_a_bucket_that_cannot_be_used_end_the_start_by_name(operator, changes, name):
    with pytest.raises(Misconfigured, match=name) as caught:
        buckets.bucket_from_settings(Settings(**operator(**changes)))
    no_secret_in(str(caught.value))


def test_keys_are_no_part_of_debug_or_of_what_is_printed(operator, cold_worker):
    worker = cold_worker(**operator())
    text = json.dumps(run(worker, {"task": "debug"})) + repr(worker.bucket) + repr(worker.settings)
    assert SECRET not in text and KEY not in text
