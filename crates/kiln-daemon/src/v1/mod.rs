//! What the paths mean, one file per resource.

mod base_images;
pub(crate) mod convert;
mod events;
mod exec;
mod files;
mod host;
mod images;
mod logs;
mod metrics;
mod named_networks;
mod networks;
mod policy;
mod ports;
mod run;
mod sandboxes;
mod snapshots;
mod volumes;

use axum::{
    Router, middleware,
    routing::{delete, get, post},
};
use kiln::Host;

use crate::{
    http::{audit, auth, error::ApiError},
    lifetime::Lifetime,
};

/// What every handler is given.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) host: Host,
    pub(crate) lifetime: Lifetime,
}

pub(crate) fn router(host: Host, lifetime: Lifetime) -> Router {
    let admit = middleware::from_fn_with_state(lifetime.clone(), auth::admit);
    Router::new()
        .route("/v1/version", get(host::version))
        .route("/v1/info", get(host::info))
        .route("/v1/shutdown", post(host::shutdown))
        .route("/v1/events", get(events::read))
        .route("/v1/metrics", get(metrics::read))
        .route("/v1/kernels", get(host::kernels))
        .route("/v1/gc", post(host::collect_garbage))
        .route("/v1/run", get(run::run))
        .route(
            "/v1/sandboxes",
            get(sandboxes::list).post(sandboxes::create),
        )
        .route(
            "/v1/sandboxes/{key}",
            get(sandboxes::get)
                .patch(sandboxes::update)
                .delete(sandboxes::remove),
        )
        .route("/v1/sandboxes/{key}/start", post(sandboxes::start))
        .route("/v1/sandboxes/{key}/stop", post(sandboxes::stop))
        .route("/v1/sandboxes/{key}/restart", post(sandboxes::restart))
        .route("/v1/sandboxes/{key}/pause", post(sandboxes::pause))
        .route("/v1/sandboxes/{key}/resume", post(sandboxes::resume))
        .route("/v1/sandboxes/{key}/wait", get(sandboxes::wait))
        .route("/v1/sandboxes/{key}/logs", get(logs::read))
        .route(
            "/v1/sandboxes/{key}/network",
            get(networks::inspect).put(networks::update),
        )
        .route("/v1/sandboxes/{key}/network/verify", post(networks::verify))
        .route("/v1/sandboxes/{key}/ports/{port}", get(ports::connect))
        .route("/v1/sandboxes/{key}/sessions", get(exec::sessions))
        .route("/v1/sandboxes/{key}/exec", get(exec::exec))
        .route(
            "/v1/sandboxes/{key}/sessions/{session}/attach",
            get(exec::attach),
        )
        .route("/v1/sandboxes/{key}/stats", get(sandboxes::stats))
        .route("/v1/sandboxes/{key}/sessions/{session}", delete(exec::kill))
        .merge(files::routes())
        .merge(base_images::routes())
        .merge(images::routes())
        .merge(snapshots::routes())
        .merge(volumes::routes())
        .merge(named_networks::routes())
        .fallback(async || ApiError::no_such_path())
        .method_not_allowed_fallback(async || ApiError::no_such_method())
        .layer(admit)
        .layer(middleware::from_fn(audit::write))
        .with_state(App { host, lifetime })
}
