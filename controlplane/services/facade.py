"""All use cases, as they are passed to the API."""

from dataclasses import dataclass

from controlplane.services.audit import AuditTrail
from controlplane.services.checking import Checking
from controlplane.services.conversions import Conversions
from controlplane.services.declarations import Declarations
from controlplane.services.deployments import Deployments
from controlplane.services.devices import Devices
from controlplane.services.events import Events
from controlplane.services.exporting import Exporting
from controlplane.services.garbage import Garbage
from controlplane.services.gateway import GatewayService
from controlplane.services.health import Health
from controlplane.services.holds import Holds
from controlplane.services.idempotency import Idempotency
from controlplane.services.inference import Inference
from controlplane.services.keys import Keys
from controlplane.services.large_json import LargeJson
from controlplane.services.limits import RateLimits
from controlplane.services.memory import Memory
from controlplane.services.models import Models
from controlplane.services.monitoring import Monitoring
from controlplane.services.operations import Operations
from controlplane.services.placement import Placement
from controlplane.services.portability import Portability
from controlplane.services.publishing import Publishing
from controlplane.services.rollouts import Rollouts
from controlplane.services.samples import SampleRecording
from controlplane.services.scrubbing import Scrubbing
from controlplane.services.servers import Servers
from controlplane.services.sessions import Sessions
from controlplane.services.tuning.service import Tunings
from controlplane.services.uploads.service import Uploads
from controlplane.services.validation import Validation
from controlplane.services.versions import Versions


@dataclass(frozen=True, slots=True)
class Services:
    """The use cases by name."""

    models: Models
    versions: Versions
    samples: SampleRecording
    uploads: Uploads
    publishing: Publishing
    conversions: Conversions
    validation: Validation
    portability: Portability
    deployments: Deployments
    exporting: Exporting
    declarations: Declarations
    rollouts: Rollouts
    memory: Memory
    placement: Placement
    holds: Holds
    inference: Inference
    large_json: LargeJson
    servers: Servers
    devices: Devices
    monitoring: Monitoring
    tunings: Tunings
    operations: Operations
    events: Events
    garbage: Garbage
    scrubbing: Scrubbing
    checking: Checking
    gateway: GatewayService
    health: Health
    idempotency: Idempotency
    keys: Keys
    audit: AuditTrail
    sessions: Sessions
    limits: RateLimits
