"""What EC2's error codes mean for who asked: elsewhere, later, or never.

Codes: EC2 API Reference, "Error codes for the Amazon EC2 API"; those of CreateFleet's `Errors` are the same. Texts are
for people and are not looked at.
"""

from __future__ import annotations

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)

from shuntserve.errors import InvalidInput, Unavailable
from shuntserve.fleet.provider import NoCapacity

_CAPACITY = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientCapacity",
        "InsufficientCapacityOnHost",
        "InsufficientFreeAddressesInSubnet",
        "ReservationCapacityExceeded",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
    }
)
_QUOTA = frozenset(
    {
        "FleetLimitExceeded",
        "InstanceLimitExceeded",
        "MaxFleetCountExceeded",
        "MaxSpotInstanceCountExceeded",
        "MaxSpotFleetRequestCountExceeded",
        "VcpuLimitExceeded",
        "VolumeLimitExceeded",
    }
)
_LATER = frozenset(
    {
        "BandwidthLimitExceeded",
        "ConcurrentTagAccess",
        "EC2ThrottledException",
        "InternalError",
        "InternalFailure",
        "InternalServerError",
        "PendingSnapshotLimitExceeded",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "Unavailable",
        # The first launch with a token may still be under way, or was made with other parameters: look what it made.
        "IdempotentParameterMismatch",
        "IdempotentInstanceTerminated",
        # Made a moment ago and not yet known everywhere.
        "InvalidLaunchTemplateId.NotFound",
        "InvalidLaunchTemplateName.NotFoundException",
    }
)
_REFUSED = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "AuthFailure",
        "AuthFailure.ServiceLinkedRoleCreationNotPermitted",
        "Blocked",
        "ExpiredToken",
        "InvalidClientTokenId",
        "MissingAuthenticationToken",
        "OptInRequired",
        "PendingVerification",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
    }
)


def of_code(thing: str, code: str, http_status: int | None = None) -> InvalidInput | Unavailable:
    """The error that a code stands for. One nobody knows is decided by the HTTP status; without one it may pass."""
    if code in _CAPACITY:
        return NoCapacity(thing, f"no capacity now ({code})", "allow more types or zones, or wait")
    if code in _QUOTA:
        return NoCapacity(thing, f"the account's quota is used up ({code})", "ask AWS for more, or allow other types")
    if code in _LATER:
        return Unavailable(thing, f"EC2 answered {code}", "try again later")
    if code in _REFUSED:
        return InvalidInput(thing, f"EC2 refused ({code})", "check credentials, permissions and the account's state")
    if http_status is not None and 400 <= http_status < 500:
        return InvalidInput(thing, f"EC2 does not accept the request ({code})", "check type, zone and EC2 settings")
    return Unavailable(thing, f"EC2 answered {code}", "try again later")


def translated(thing: str, error: ClientError | BotoCoreError) -> InvalidInput | Unavailable:
    """Our word for an error of the client library."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return of_code(thing, code_of(error), status)
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound):
        return InvalidInput(thing, str(error), "give AWS credentials: environment, profile or instance role")
    if isinstance(error, NoRegionError | ParamValidationError):
        return InvalidInput(thing, str(error), "check the EC2 settings")
    return Unavailable(thing, f"EC2 does not answer: {error}", "check the network, or try again later")


def code_of(error: ClientError) -> str:
    """The code an answer carries."""
    return str(error.response.get("Error", {}).get("Code", "unknown"))
