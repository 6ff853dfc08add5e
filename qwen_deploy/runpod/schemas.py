"""The shapes of RunPod's answers, as far as they are read: by the OpenAPI document of its REST API 2.0.0.

What the document does not require is `NotRequired`. Declares only.
"""

from typing import NotRequired, TypedDict

FLASHBOOT_SUFFIX = " -fb"  # which the platform adds to the names of endpoints with FlashBoot

# A JSON object whose fields are somebody else's: a job's input, a worker's reply, an answer before its shape is known.
JsonObject = dict[str, object]


class WorkerLimits(TypedDict):
    """`configuration.flatten` reads the others."""

    min: int
    max: int


class Endpoint(TypedDict):
    """`configuration.flatten` reads the fields that can be set."""

    id: str
    name: str
    workers: WorkerLimits
    type: NotRequired[str]  # QUEUE or LOAD_BALANCER
    image: NotRequired[str]
    timeout: NotRequired[int]  # milliseconds that a job may run; 0 for any
    requestUrls: NotRequired[dict[str, str]]
    networkVolumes: NotRequired[list[str]]


class Worker(TypedDict):
    id: str
    gpuCount: int
    status: str  # RUNNING, IDLE, INITIALIZING, THROTTLED or UNHEALTHY
    isStale: bool
    gpuTypeId: NotRequired[str | None]
    dataCenterId: NotRequired[str | None]
    image: NotRequired[str | None]
    uptimeSeconds: NotRequired[int | None]


class WorkerList(TypedDict):
    workers: list[Worker]
    summary: dict[str, int]  # workers by state, and their `total`
    endpointVersion: NotRequired[int | None]


class Rollout(TypedDict):
    workersOnLatest: int
    workersTotal: int


class ReleaseList(TypedDict):
    rollout: Rollout
    endpointVersion: NotRequired[int | None]


class GpuType(TypedDict):
    id: str
    name: str
    pool: str | None
    manufacturer: str
    memory: int  # GB
    price: dict[str, float]  # dollars an hour, by product
    availability: NotRequired[str]
    dataCenters: NotRequired[list["Availability"]]


class BillRecord(TypedDict):
    """Of one day, in UTC: dollars."""

    startTime: str
    totalAmount: float


class EndpointBillRecord(BillRecord):
    serverlessId: str
    gpuAmount: float
    cpuAmount: float
    diskAmount: float
    feeAmount: float


class VolumeBillRecord(BillRecord):
    networkVolumeId: str


class Availability(TypedDict):
    """Of one data centre."""

    id: str
    availability: str  # NONE, LOW, MEDIUM or HIGH


class CpuType(TypedDict):
    id: str
    vcpu: dict[str, int]  # min and max
    price: dict[str, float]  # securePerVcpu: dollars an hour of a Pod, for each
    availability: NotRequired[str]
    dataCenters: NotRequired[list[Availability]]


class DataCenter(TypedDict):
    id: str
    name: str
    networkVolumeTypes: list[str]  # empty where there are no volumes


class Volume(TypedDict):
    id: str
    name: str
    size: int  # GB
    dataCenter: str


class Mounts(TypedDict):
    network: NotRequired[list[dict[str, str]]]  # volumeId and path


class Pod(TypedDict):
    id: str
    name: str
    status: str  # PROVISIONING, STARTING, RUNNING, EXITED, ERROR or TERMINATED
    cost: float  # dollars an hour, now
    env: dict[str, str]
    mounts: NotRequired["Mounts"]


class Registry(TypedDict):
    id: str
    name: str


class LogLine(TypedDict):
    line: str
    source: NotRequired[str]  # container or system
    ts: NotRequired[str]


class Problem(TypedDict, total=False):
    """An error answer (RFC 9457)."""

    title: str
    detail: str
    errors: list[str]  # such as `$.disk: must be >= 1`


class QueueHealth(TypedDict):
    jobs: NotRequired[dict[str, int]]  # by state


class JobStatus(TypedDict):
    """Of the job queue, whose API has no OpenAPI document."""

    id: str
    status: str
    output: NotRequired[object]
    error: NotRequired[object]
    executionTime: NotRequired[int]  # milliseconds
    workerId: NotRequired[str]
