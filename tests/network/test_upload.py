"""Uploads as their threads meet the library."""

import subprocess
import sys

from ..conftest import ROOT

# Two jobs' first uploads in a process that has not imported boto3 yet: the second begins while the first has imported
# its parts, and has not come to the end of the package.
FIRST_UPLOADS = """
import sys, threading, time
from qwen_worker.network import upload
from qwen_worker.network.bucket import Bucket

bucket = Bucket("http://127.0.0.1:9", "pictures", "eu-1", "id", "secret", "", "{job_id}", None, 60, False)
half_made = threading.Event()

def pause_in_package(frame, event, _):
    if not frame.f_code.co_filename.endswith("boto3/__init__.py") or frame.f_code.co_name != "<module>":
        return None
    if event == "line" and "Session" in frame.f_globals and not half_made.is_set():
        half_made.set()
        time.sleep(1)
    return pause_in_package

def send(traced):
    if traced:
        sys.settrace(pause_in_package)
    else:
        half_made.wait()
    urls = upload.send_files(bucket, [], time.monotonic() + 60)
    sys.stdout.write(f"{urls}\n")  # in one piece: the other thread writes too
    sys.stdout.flush()

threads = [threading.Thread(target=send, args=(traced,)) for traced in (True, False)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_a_first_upload_waits_until_another_has_imported_the_whole_library():
    ended = subprocess.run([sys.executable, "-c", FIRST_UPLOADS], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.splitlines() == ["[]", "[]"], ended.stderr
