"""Documents that declare what is to exist."""

from pydantic import BaseModel, ConfigDict, Field

from controlplane.domain.declaration import Difference
from controlplane.domain.deployment import SetName
from controlplane.domain.documents import API_VERSION, DEFAULT_SET, Document
from controlplane.domain.texts import Reason
from controlplane.services.declarations import Declaration


class ApplyRequest(BaseModel):
    """Documents to apply or to compare."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "documents": [
                        {
                            "apiVersion": API_VERSION,
                            "kind": "Deployment",
                            "metadata": {"name": "resnet"},
                            "spec": {"reference": "resnet@champion", "settings": {"max_batch_size": 16}},
                        }
                    ],
                    "prune": True,
                }
            ]
        },
    )

    documents: list[Document] = Field(max_length=10_000, description="The documents, each for another object.")
    set: SetName = Field(default=DEFAULT_SET, description="The set that their deployments belong to.")
    prune: bool = Field(default=False, description="Whether to undeploy deployments of the set without a document.")
    force: bool = Field(default=False, description="Whether to undo what rollouts and rollbacks decided.")
    reason: Reason = Field(default="", description="Reason; recorded in the history.")

    def to_declaration(self) -> Declaration:
        """Return what the service applies."""
        return Declaration(self.documents, self.set, prune=self.prune, force=self.force, reason=self.reason)


class DifferenceList(BaseModel):
    """What documents would change, or did change."""

    items: list[Difference] = Field(description="One item for each document, and for each pruned deployment.")
    changed: int = Field(description="Number of objects that differ, or were changed.")
    refused: int = Field(description="Number of documents that are refused; only a dry run can have any.")
