"""Finding a registered model and bringing its files here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sparktrain.errors import ModelNotFound, ModelUnusable, TrackingUnavailable
from sparktrain.runs.connection import (
    bounded_http,
    check_tracking,
    connect,
    quiet_mlflow,
    reason_of,
    sqlite_file,
    without_secrets,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/]+)|/(?P<version>\d+|latest))")
_LOGGED = re.compile(r"models:/(m-[0-9a-f]{32})")
_TIMEOUT_SECONDS = 30
_MAX_LISTED = 20


def fetch_model(model_uri: str, tracking_uri: str | None, folder: Path) -> Path:
    """Bring the files of a model into `folder`, or return where they lie already.

    Args:
        model_uri: models:/name@alias, models:/name/version, models:/name/latest, models:/<model id>, runs:/…,
            or the path of a directory.
        tracking_uri: None takes MLflow's own setting.

    Raises:
        ModelNotFound: with the models that there are.
        ModelUnusable: the registry has it, but its files are gone.
        TrackingUnavailable: within ten seconds when the server does not answer.
    """
    uri = tracking_uri or _default_uri()
    source = find_model(model_uri, uri)
    if (local := Path(source)).is_dir():
        return local
    with quiet_mlflow(), bounded_http(_TIMEOUT_SECONDS, max_retries=2):
        return _download(source, model_uri, uri, folder)


def find_model(model_uri: str, tracking_uri: str) -> str:
    """Return where the files of a model lie, without fetching them.

    Raises:
        ModelNotFound: with the models that there are.
        TrackingUnavailable: within ten seconds when the server does not answer.
    """
    if Path(model_uri).is_dir():
        return model_uri
    _refuse_new_database(tracking_uri)
    check_tracking(tracking_uri)
    with quiet_mlflow(), bounded_http(_TIMEOUT_SECONDS, max_retries=2):
        return _locate(connect(tracking_uri), model_uri, tracking_uri)


def _default_uri() -> str:
    import mlflow

    return os.environ.get("MLFLOW_TRACKING_URI") or str(mlflow.get_tracking_uri())


def _refuse_new_database(uri: str) -> None:
    """MLflow would create the file, and then find no model in it."""
    path = sqlite_file(uri)
    if path is not None and not path.is_file():
        way_out = (
            "Say where the model is registered: tracking_uri, or MLFLOW_TRACKING_URI; of a training by "
            "embedded defaults it is sqlite:///<storage.root>/mlflow.db"
        )
        raise TrackingUnavailable(without_secrets(uri), f"there is no file {path}", way_out)


def _locate(client: MlflowClient, model_uri: str, uri: str) -> str:
    """Return where the files lie; MLflow's own lookup of models:/ asks the process-wide server."""
    from mlflow.exceptions import MlflowException

    try:
        if match := _LOGGED.fullmatch(model_uri):
            return str(client.get_logged_model(match[1]).artifact_location)
        if match := _REGISTERED.fullmatch(model_uri):
            version = _version(client, match)
            location = client.get_model_version_download_uri(match["name"], version)
            return _locate(client, location, uri) if _LOGGED.fullmatch(location) else location
    except (MlflowException, LookupError) as error:
        code = getattr(error, "error_code", "NOT_FOUND")
        if code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
            raise TrackingUnavailable(without_secrets(uri), reason_of(error)) from error
        raise ModelNotFound(model_uri, without_secrets(uri), known_models(client)) from error
    if model_uri.startswith("models:") or ":/" not in model_uri:
        raise ModelNotFound(model_uri, without_secrets(uri), known_models(client))
    return model_uri


def _version(client: MlflowClient, match: re.Match[str]) -> str:
    name, alias, version = match["name"], match["alias"], match["version"]
    if alias:
        return str(client.get_model_version_by_alias(name, alias).version)
    if version != "latest":
        return version
    newest = client.search_model_versions(f"name='{name}'", max_results=1, order_by=["version_number DESC"])
    return str(newest[0].version)


def known_models(client: MlflowClient) -> dict[str, list[str]]:
    """Return the ways to name each registered model: its aliases, and its newest version."""
    known = {}
    for model in client.search_registered_models(max_results=_MAX_LISTED):
        aliases = [f"@{alias} (version {version})" for alias, version in sorted(model.aliases.items())]
        newest = [f"/{version.version}" for version in model.latest_versions or []]
        known[model.name] = aliases + newest
    return known


def _download(source: str, model_uri: str, uri: str, folder: Path) -> Path:
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        return Path(download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=uri))
    except (MlflowException, OSError) as error:
        raise ModelUnusable(
            model_uri,
            f"its files can't be fetched: {reason_of(error)}",
            "check that they still lie where MLflow put them, or register the model again",
        ) from error
