"""What we do on a Kubeflow Pipelines server: versions by content, runs, recurring runs; each safe to ask for twice."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from atelier.errors import ServiceError
from atelier.orchestration.connection import Refused, Server, Silent, talking

PAGE = 100
#: Newest runs that are looked through for one that is the same.
RECENT = 300
RUNNING = ("", "RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "PAUSED")
ENDED = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")


class Kubeflow:
    """One server, in one namespace."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.client = server.client

    def version(self, pipeline: str, name: str, package: Path, description: str) -> tuple[str, str, bool]:
        """Finds a pipeline's version by its name, or uploads it.

        Args:
            pipeline: the pipeline's name, made where it is missing.
            name: the version's name, which tells its content.
            package: the compiled YAML.

        Returns:
            The pipeline's id, the version's id, whether it was uploaded now.

        Raises:
            ServiceError: as ``talking``.
        """
        pipeline_id = self._pipeline(pipeline, description)
        found = self._version(pipeline_id, name)
        if found is not None:
            return pipeline_id, found, False
        try:
            with talking(self.server.where):
                made = self.client.upload_pipeline_version(
                    str(package), pipeline_version_name=name, pipeline_id=pipeline_id, description=description
                )
            return pipeline_id, str(made.pipeline_version_id), True
        except (Refused, Silent) as error:
            # Somebody was faster, or the answer was lost on its way.
            found = self._version(pipeline_id, name) if not isinstance(error, Refused) or error.status == 409 else None
            if found is None:
                raise
            return pipeline_id, found, False

    def _pipeline(self, name: str, description: str) -> str:
        found = self._find_pipeline(name)
        if found is not None:
            return found
        import kfp_server_api

        wanted = kfp_server_api.V2beta1Pipeline(
            display_name=name, name=name, description=description, namespace=self.server.namespace or None
        )
        try:
            with talking(self.server.where):
                return str(self.client._pipelines_api.pipeline_service_create_pipeline(wanted).pipeline_id)
        except (Refused, Silent) as error:
            found = self._find_pipeline(name) if not isinstance(error, Refused) or error.status == 409 else None
            if found is None:
                raise
            return found

    def _find_pipeline(self, name: str) -> str | None:
        with talking(self.server.where):
            for each in self._pages(self._list_pipelines, "pipelines", filter=_named(name)):
                if each.display_name == name and (each.namespace or "") in ("", self.server.namespace):
                    return str(each.pipeline_id)
        return None

    def _list_pipelines(self, **query: Any) -> Any:
        return self.client.list_pipelines(**query, namespace=self.server.namespace or None)

    def _version(self, pipeline_id: str, name: str) -> str | None:
        def versions(**query: Any) -> Any:
            return self.client.list_pipeline_versions(pipeline_id, **query)

        with talking(self.server.where):
            for each in self._pages(versions, "pipeline_versions", filter=_named(name)):
                if each.display_name == name:
                    return str(each.pipeline_version_id)
        return None

    def experiment(self, name: str) -> str:
        """An experiment's id, made where it is missing."""
        with talking(self.server.where):
            return str(self.client.create_experiment(name, namespace=self.server.namespace or None).experiment_id)

    def running(self, experiment: str, version: str, parameters: dict[str, Any], root: str) -> Any | None:
        """The newest run of the same version with the same parameters that has not ended, or None."""

        def runs(**query: Any) -> Any:
            return self.client.list_runs(experiment_id=experiment, sort_by="created_at desc", **query)

        with talking(self.server.where):
            for number, each in enumerate(self._pages(runs, "runs")):
                if number >= RECENT:
                    return None
                same = (
                    _version_of(each) == version
                    and _parameters(each) == parameters
                    and ((each.runtime_config and each.runtime_config.pipeline_root) or "") == root
                )
                if same and str(each.state or "") in RUNNING:
                    return each
        return None

    def run(
        self,
        *,
        experiment: str,
        name: str,
        pipeline: str,
        version: str,
        parameters: dict[str, Any],
        root: str,
        account: str,
    ) -> Any:
        """Starts a run. Where no answer comes, the server is asked whether it started after all.

        Raises:
            ServiceError: as ``talking``.
        """
        try:
            with talking(self.server.where):
                return self.client.run_pipeline(
                    experiment,
                    name,
                    params=parameters,
                    pipeline_id=pipeline,
                    version_id=version,
                    pipeline_root=root or None,
                    service_account=account or None,
                )
        except Silent:
            found = self.running(experiment, version, parameters, root)
            if found is None or found.display_name != name:
                raise
            return found

    def get(self, run: str) -> Any:
        """A run as it is now."""
        with talking(self.server.where):
            return self.client.get_run(run)

    def stop(self, run: str) -> str:
        """Asks a run to end; its steps are told by SIGTERM and save first. Returns the state it was in."""
        state = str(self.get(run).state or "")
        if state not in ENDED:
            with talking(self.server.where):
                self.client.terminate_run(run)
        return state

    def recurring(self, name: str = "") -> list[Any]:
        """The recurring runs (of one name), over all experiments of the namespace."""

        def listed(**query: Any) -> Any:
            return self.client.list_recurring_runs(namespace=self.server.namespace or None, **query)

        with talking(self.server.where):
            found = list(self._pages(listed, "recurring_runs"))
        return [each for each in found if not name or each.display_name == name]

    def create_recurring(
        self,
        *,
        experiment: str,
        name: str,
        description: str,
        cron: str,
        concurrency: int,
        catch_up: bool,
        pipeline: str,
        version: str,
        parameters: dict[str, Any],
        root: str,
        account: str,
    ) -> Any:
        """Makes a recurring run; enabled."""
        with talking(self.server.where):
            return self.client.create_recurring_run(
                experiment,
                name,
                description=description,
                cron_expression=cron,
                max_concurrency=concurrency,
                no_catchup=not catch_up,
                params=parameters,
                pipeline_id=pipeline,
                version_id=version,
                pipeline_root=root or None,
                service_account=account or None,
            )

    def delete_recurring(self, identity: str) -> None:
        """Removes a recurring run; one that is gone already is fine."""
        try:
            with talking(self.server.where):
                self.client.delete_recurring_run(identity)
        except Refused as error:
            if error.status != 404:
                raise

    @staticmethod
    def _pages(listed: Callable[..., Any], field: str, **query: Any) -> Iterator[Any]:
        """Everything of a list, page by page."""
        token, seen = "", set()
        while True:
            page = listed(page_token=token, page_size=PAGE, **query)
            yield from getattr(page, field) or ()
            token = page.next_page_token or ""
            if not token:
                return
            if token in seen:
                raise ServiceError("the server's list has no end", "this is a fault of the server")
            seen.add(token)


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


def _version_of(record: Any) -> str:
    reference = record.pipeline_version_reference
    return str((reference and reference.pipeline_version_id) or record.pipeline_version_id or "")


def _parameters(record: Any) -> dict[str, Any]:
    return dict((record.runtime_config and record.runtime_config.parameters) or {})


def same_recurring(
    record: Any,
    *,
    cron: str,
    concurrency: int,
    catch_up: bool,
    version: str,
    parameters: dict[str, Any],
    root: str,
    account: str,
    experiment: str,
) -> bool:
    """Whether a recurring run is what is wanted, to the last detail, and enabled."""
    schedule = record.trigger and record.trigger.cron_schedule
    return bool(
        schedule
        and schedule.cron == cron
        and int(record.max_concurrency or 1) == concurrency
        and bool(record.no_catchup) is not catch_up
        and _version_of(record) == version
        and _parameters(record) == parameters
        and ((record.runtime_config and record.runtime_config.pipeline_root) or "") == root
        and (record.service_account or account) == account
        and record.experiment_id == experiment
        and str(record.status or "ENABLED") == "ENABLED"
        and str(record.mode or "ENABLE") == "ENABLE"
    )
