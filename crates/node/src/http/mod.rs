//! The HTTP/JSON API, version 1: the admin socket with everything, and a loopback address with
//! health and metrics only. What it serves is said in [`crate::api`].

mod conversation;
mod metrics;
mod server;

pub use server::{serve_tcp, serve_unix};

use crate::{api, asker::Asker};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use engine::admin::{AdminError, AdminErrorKind, AdminReply, AdminRequest};
use proto::limits::{ADMIN_READ_MS_MAX, ADMIN_REQUEST_BYTES_MAX};
use serde::Serialize;
use std::{fmt::Write, time::Duration};

/// The question behind [`api::PATH_LAYERS`].
const ALL_LAYERS: AdminRequest = AdminRequest::LayerList { name: None };

/// What the admin socket serves.
pub fn admin_router(asker: Asker) -> Router {
    Router::new()
        .route(api::PATH_REQUEST, post(answer_request))
        .route(api::PATH_STATUS, get(|State(asker)| answer(asker, AdminRequest::Status)))
        .route(api::PATH_NODE, get(|State(asker)| answer(asker, AdminRequest::NodeInfo)))
        .route(api::PATH_DISKS, get(|State(asker)| answer(asker, AdminRequest::DiskList)))
        .route(api::PATH_VOLUMES, get(|State(asker)| answer(asker, AdminRequest::VolumeList)))
        .route(&format!("{}/{{name}}", api::PATH_VOLUMES), get(answer_volume))
        .route(&format!("{}/{{name}}/snapshots", api::PATH_VOLUMES), get(answer_snapshots))
        .route(api::PATH_LAYERS, get(|State(asker)| answer(asker, ALL_LAYERS)))
        .route(api::PATH_CLUSTER, get(|State(asker)| answer(asker, AdminRequest::ClusterStatus)))
        .merge(watching_routes())
        .fallback(answer_unknown)
        .method_not_allowed_fallback(answer_method)
        .with_state(asker)
}

/// What a loopback address serves: nothing that tells names or changes anything.
pub fn watching_router(asker: Asker) -> Router {
    watching_routes()
        .fallback(answer_unknown)
        .method_not_allowed_fallback(answer_method)
        .with_state(asker)
}

fn watching_routes() -> Router<Asker> {
    Router::new()
        .route(api::PATH_HEALTH, get(answer_health))
        .route(api::PATH_METRICS, get(metrics::answer_metrics))
}

/// `POST` of an [`AdminRequest`]: the [`AdminReply`] as it is.
async fn answer_request(State(asker): State<Asker>, body: Body) -> Response {
    let limit = Duration::from_millis(ADMIN_READ_MS_MAX);
    let body = match tokio::time::timeout(limit, to_bytes(body, ADMIN_REQUEST_BYTES_MAX)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => return refuse("the request is too long or was cut off; send it again"),
        Err(_) => return refuse("the request took too long to arrive; send it at once"),
    };
    let request: AdminRequest = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            let sentence = format!(
                "the request is not understood ({error}); use a dog of the same version as sheep"
            );
            return refuse(&sentence);
        }
    };
    match asker.ask(request).await {
        Ok(reply) => json(StatusCode::OK, &reply),
        Err(error) => error_response(&error),
    }
}

/// A `GET`: only the content of the reply.
async fn answer(asker: Asker, request: AdminRequest) -> Response {
    match asker.ask(request).await {
        Ok(AdminReply::Done) => StatusCode::NO_CONTENT.into_response(),
        Ok(AdminReply::Status(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Node(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Disks(reports)) => json(StatusCode::OK, &reports),
        Ok(AdminReply::Volumes(reports)) => json(StatusCode::OK, &reports),
        Ok(AdminReply::Volume(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Snapshot(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Snapshots(reports)) => json(StatusCode::OK, &reports),
        Ok(AdminReply::Layers(reports)) => json(StatusCode::OK, &reports),
        Ok(AdminReply::Schedule(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Schedules(reports)) => json(StatusCode::OK, &reports),
        Ok(AdminReply::Trash(reports)) => json(StatusCode::OK, &reports),
        Ok(AdminReply::Trashed(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Group(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Groups(reports)) => json(StatusCode::OK, &reports),
        Ok(AdminReply::GroupSnapshot(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Token(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Tokens(reports)) => json(StatusCode::OK, &reports),
        Ok(AdminReply::Cluster(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Explained(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Located(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::Recovery(report)) => json(StatusCode::OK, &report),
        Ok(AdminReply::DiskAdded(report)) => json(StatusCode::OK, &report),
        Err(error) => error_response(&error),
    }
}

async fn answer_volume(State(asker): State<Asker>, Path(name): Path<String>) -> Response {
    answer(asker, AdminRequest::VolumeInfo { name }).await
}

/// Without what deleting each would free: that takes long, and is asked for by `POST`.
async fn answer_snapshots(State(asker): State<Asker>, Path(name): Path<String>) -> Response {
    answer(asker, AdminRequest::SnapshotList { name, reclaimable: false }).await
}

/// 200 if all is well, else 503; either way sentences, one a line.
async fn answer_health(State(asker): State<Asker>) -> Response {
    let (status, text) = match asker.ask(AdminRequest::Status).await {
        Ok(AdminReply::Status(report)) => {
            let mut text = String::new();
            for warning in &report.warnings {
                let _ = writeln!(text, "{warning}");
            }
            match report.healthy {
                true => (StatusCode::OK, format!("healthy\n{text}")),
                false => (StatusCode::SERVICE_UNAVAILABLE, format!("unhealthy\n{text}")),
            }
        }
        Ok(_) => (StatusCode::INTERNAL_SERVER_ERROR, "a status was answered otherwise\n".into()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("unhealthy\n{error}\n")),
    };
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

async fn answer_unknown() -> Response {
    error_response(&AdminError {
        kind: AdminErrorKind::NotFound,
        sentence: format!(
            "there is nothing at this path; ask {}, {}, {}, {} or {}",
            api::PATH_STATUS,
            api::PATH_VOLUMES,
            api::PATH_DISKS,
            api::PATH_HEALTH,
            api::PATH_METRICS
        ),
    })
}

async fn answer_method() -> Response {
    let error = AdminError {
        kind: AdminErrorKind::Invalid,
        sentence: format!("use GET here, or POST at {}", api::PATH_REQUEST),
    };
    json(StatusCode::METHOD_NOT_ALLOWED, &error)
}

fn refuse(sentence: &str) -> Response {
    let kind = AdminErrorKind::Invalid;
    error_response(&AdminError { kind, sentence: sentence.to_string() })
}

fn error_response(error: &AdminError) -> Response {
    let status = StatusCode::from_u16(api::http_status(error.kind)).expect("a status");
    json(status, error)
}

fn json(status: StatusCode, content: &impl Serialize) -> Response {
    let mut body = serde_json::to_vec(content).expect("reports are always JSON");
    body.push(b'\n');
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests;
