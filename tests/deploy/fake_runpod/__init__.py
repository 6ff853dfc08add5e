"""RunPod on loopback: REST API v2, the job queue of its endpoints, and workers that come up, crash or wait for a card.

Every request is held against the schemas of RunPod's OpenAPI document, and so is every answer. What an image's workers
do is a `Build`. Time passes by looks: each GET of the workers is a tick.
"""

from .builds import Build, a_picture, draws, stands_in
from .document import SCHEMAS
from .platform import Worker
from .server import KEY, LATE_LINE, FakeRunPod, Fault

__all__ = ["KEY", "LATE_LINE", "SCHEMAS", "Build", "FakeRunPod", "Fault", "Worker", "a_picture", "draws", "stands_in"]
