"""No reply, error, log line or health report quotes the credentials or the signature of a URL."""

import json

import pytest

from qwen_worker.checkpoints.files import label_of
from qwen_worker.errors import JobError, LoadError, describe_error, hide_secrets
from qwen_worker.jobs.parsing import parse
from qwen_worker.log import log_exception, log_line
from qwen_worker.settings import Misconfigured, read_settings

from .support.patience import little_work

SECRETS = (
    "https://me:s3cret@example.com/a.safetensors",
    "https://me:s3c/ret@example.com/a.safetensors",
    "https://s3cret@example.com/a.safetensors",
    "https://example.com/a.safetensors?X-Amz-Signature=s3cret",
    "https://example.com/a.safetensors#s3cret",
    "https://me:s3cret@example.com:8443/a.safetensors?token=s3cret&user=me@example.com",
)


@pytest.mark.parametrize("url", SECRETS)
def test_a_url_keeps_its_place_alone(url):
    place = hide_secrets(f"before {url} after")
    assert place.replace(":8443", "") == "before https://example.com/a.safetensors after"
    assert hide_secrets(f'["{url}"]').replace(":8443", "") == '["https://example.com/a.safetensors"]'


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com:8080/@user/a.safetensors",
        "Is it green? #1, asks me@example.com: a/b@main",
        "styles/what?no=1.safetensors",
        "[https://example.com]",
    ],
)
def test_what_is_no_secret_stays(text):
    assert hide_secrets(text) == text


@pytest.mark.parametrize(
    "text", ["://a:b" * 500_000, "a" * 3_000_000, "https://a:b'" * 200_000, "with url: /" * 200_000]
)
def test_a_hostile_text_costs_one_pass(text):
    with little_work():
        hide_secrets(text)


@pytest.mark.parametrize("url", [f"{url}\n" for url in SECRETS] + [f"https://me:{'s3cret' * 30}@example.com/a\n"])
@pytest.mark.parametrize(
    "fields",
    [
        {"loras": [{"path": "URL"}]},
        {"loras": ["URL"]},
        {"loras": "URL"},
        {"loras": [{"path": "a/b", "scale": "URL"}]},
        {"loras": [{"path": "a/b", "URL": 1}]},
        {"delivery": "URL"},
        {"task": "URL"},
        {"size": "URL"},
        {"URL": 1},
    ],
)
def test_a_refusal_quotes_no_secret_of_a_job_s_url(fields, url):
    job_input = json.loads(json.dumps({"prompt": "a fox"} | fields).replace("URL", json.dumps(url)[1:-1]))
    with pytest.raises(JobError) as caught:
        parse(job_input, "job-1")
    assert "s3c" not in str(caught.value)


@pytest.mark.parametrize("url", SECRETS)
def test_no_sentence_for_a_caller_quotes_a_secret(url):
    failures = JobError("internal", f"at {url}"), LoadError(f"at {url}"), RuntimeError(f"403 for url: {url}")
    sentences = [failures[0].reply()["error"], failures[0].sentence, failures[1].reason, str(failures[1])]
    assert "s3c" not in "".join([*sentences, describe_error(failures[2]), label_of(url)])
    assert failures[1].reason.startswith("at https://example.com")


def test_requests_words_for_a_url_without_its_host_hide_the_query():
    words = "Max retries exceeded with url: /a.safetensors?token=s3cret (Caused by NewConnectionError)"
    assert hide_secrets(words) == "Max retries exceeded with url: /a.safetensors (Caused by NewConnectionError)"


@pytest.mark.parametrize("endpoint", [None, "endpoint-1"])
@pytest.mark.parametrize("url", SECRETS)
def test_the_log_has_no_secret_either(url, endpoint, monkeypatch, capsys):
    if endpoint:
        monkeypatch.setenv("RUNPOD_ENDPOINT_ID", endpoint)
    log_line("job-1", "WARN", f"{url} is ignored")
    try:
        raise OSError(f"cannot reach {url}")
    except OSError:
        log_exception("job-1")
    logged = capsys.readouterr().out
    assert logged.count("https://example.com") == 2 and "s3c" not in logged


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize("name", ["QWEN_FALLBACK", "QWEN_BATCH", "BUCKET_PUBLIC_URL", "BUCKET_KEY", "QWEN_SPEEDUPS"])
def test_a_setting_s_refusal_quotes_no_secret(name, url, monkeypatch):
    monkeypatch.setenv(name, url.replace("https", "ftp"))
    with pytest.raises(Misconfigured) as caught:
        read_settings()
    assert "ftp://example.com" in str(caught.value)
    assert "s3c" not in str(caught.value)
