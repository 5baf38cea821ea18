//! Version 1 of the HTTP/JSON API, as `sheep` serves it and `dog` asks it: paths, status codes,
//! names of files. Bodies are [`engine::admin`]'s types as JSON.
//!
//! `POST /v1/request` takes an [`AdminRequest`](engine::admin::AdminRequest) and answers with an
//! [`AdminReply`](engine::admin::AdminReply) or, with a status other than 200, an
//! [`AdminError`](engine::admin::AdminError). The `GET` paths are the same questions for people
//! with `curl --unix-socket`.

use engine::admin::AdminErrorKind;
use std::path::{Path, PathBuf};

/// The data directory unless told otherwise.
pub const DATA_DIRECTORY_DEFAULT: &str = "/var/lib/sheepdog";
/// The environment variable that names the data directory, for `sheep` and `dog` alike.
pub const DATA_DIRECTORY_VARIABLE: &str = "SHEEP_DATA";

/// `POST` an `AdminRequest`.
pub const PATH_REQUEST: &str = "/v1/request";
/// `GET` the `StatusReport`.
pub const PATH_STATUS: &str = "/v1/status";
/// `GET` the `NodeReport`.
pub const PATH_NODE: &str = "/v1/node";
/// `GET` the list of `DiskReport`.
pub const PATH_DISKS: &str = "/v1/disks";
/// `GET` the list of `VolumeReport`; with `/NAME` behind it, one of them; with `/NAME/snapshots`
/// behind it, the list of its `SnapshotReport`.
pub const PATH_VOLUMES: &str = "/v1/volumes";
/// `GET` the list of `LayerReport`: which volume, snapshot and clone builds on which.
pub const PATH_LAYERS: &str = "/v1/layers";
/// `GET` the `ClusterReport`: is anything at risk, and what is done about it?
pub const PATH_CLUSTER: &str = "/v1/cluster";
/// `GET` 200 or 503 with sentences: is all well?
pub const PATH_HEALTH: &str = "/health";
/// `GET` the metrics in Prometheus' text format.
pub const PATH_METRICS: &str = "/metrics";

/// The admin socket of a data directory: mode 0600, for the daemon's user only.
pub fn admin_socket(data: &Path) -> PathBuf {
    data.join("admin.sock")
}

/// The NBD socket of a data directory: mode 0660, for the daemon's user and the group set by
/// `--socket-group`.
pub fn nbd_socket(data: &Path) -> PathBuf {
    data.join("nbd.sock")
}

/// The HTTP status that carries an error of this kind.
pub fn http_status(kind: AdminErrorKind) -> u16 {
    match kind {
        AdminErrorKind::NotFound => 404,
        AdminErrorKind::Conflict => 409,
        AdminErrorKind::Invalid => 400,
        AdminErrorKind::Unavailable => 503,
        AdminErrorKind::LimitReached => 507,
    }
}
