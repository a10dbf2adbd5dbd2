//! Kiln's REST contract, version 1, and its client.
//!
//! Owns the shapes that travel between a client and the daemon: requests, answers, errors, and
//! the messages of a stream. Requests refuse fields they do not know, since a misspelt limit is a
//! limit that is not applied; answers tolerate them, since a newer daemon may say more.
//!
//! It knows nothing of sandboxes beyond their shape, and holds no server code.
//!
//! # Endpoints
//!
//! | method and path | request | answer |
//! |---|---|---|
//! | `GET /v1/version` | | [`Version`] |
//! | `GET /v1/info` | | [`HostInfo`] |
//! | `GET /v1/sandboxes?filters=` | | array of [`Sandbox`], newest first; `filters` is a JSON array of `NAME=VALUE` |
//! | `POST /v1/sandboxes` | [`CreateSandbox`] | 201, [`Sandbox`]; not started. With an [`IDEMPOTENCY_HEADER`] at most one is made |
//! | `GET /v1/sandboxes/{key}` | | [`Sandbox`] |
//! | `PATCH /v1/sandboxes/{key}` | [`UpdateSandbox`] | [`Sandbox`] |
//! | `DELETE /v1/sandboxes/{key}?force=` | | 204 |
//! | `POST /v1/sandboxes/{key}/start` | | [`Sandbox`] |
//! | `POST /v1/sandboxes/{key}/stop` | [`StopSandbox`] | [`Sandbox`] |
//! | `POST /v1/sandboxes/{key}/restart` | [`StopSandbox`] | [`Sandbox`] |
//! | `POST /v1/sandboxes/{key}/pause` | | [`Sandbox`] |
//! | `POST /v1/sandboxes/{key}/resume` | | [`Sandbox`] |
//! | `GET /v1/sandboxes/{key}/wait?for=` | | [`Sandbox`], once it is `stopped`, `running` or `removed` |
//! | `GET /v1/sandboxes/{key}/logs?follow=&tail=` | | bytes of the guest's console, chunked |
//! | `GET /v1/sandboxes/{key}/network` | | [`Network`] |
//! | `PUT /v1/sandboxes/{key}/network` | [`NetworkPolicy`] | [`Network`]; the policy is replaced whole |
//! | `POST /v1/sandboxes/{key}/network/verify` | | array of [`NetworkProof`] |
//! | upgrade `GET /v1/sandboxes/{key}/ports/{port}` to [`PORT_PROTOCOL`] | | bytes of a TCP connection to the guest's port |
//! | `GET /v1/sandboxes/{key}/stats` | | [`Stats`] |
//! | `GET /v1/sandboxes/{key}/files?path=&follow=` | | [`FileInfo`] |
//! | `DELETE /v1/sandboxes/{key}/files?path=&recursive=` | | 204 |
//! | `GET /v1/sandboxes/{key}/files/list?path=` | | array of [`FileInfo`], by name |
//! | `GET /v1/sandboxes/{key}/files/watch?path=&recursive=` | | server-sent events, each a [`FileChange`], until what is watched is gone |
//! | `POST /v1/sandboxes/{key}/files/mkdir` | [`MakeDirectory`] | 204 |
//! | `POST /v1/sandboxes/{key}/files/move` | [`MoveFile`] | 204 |
//! | `GET /v1/sandboxes/{key}/tree?path=&follow=` | | a tree, chunked; whole only with its own end |
//! | `PUT /v1/sandboxes/{key}/tree?path=&user=&keep_owner=` | a tree, chunked | 204 |
//! | `DELETE /v1/sandboxes/{key}/sessions/{id}` | | 204; it ends with all its processes |
//! | `GET /v1/sandboxes/{key}/sessions` | | array of [`Session`] |
//! | WebSocket `/v1/sandboxes/{key}/exec` | [`ExecRequest`] | a stream |
//! | WebSocket `/v1/sandboxes/{key}/sessions/{id}/attach` | [`AttachRequest`] | a stream |
//! | WebSocket `/v1/run` | [`RunRequest`] | a stream |
//! | `GET /v1/images?all=` | | array of [`Image`] |
//! | `GET /v1/images/{image}` | | [`Image`] |
//! | `DELETE /v1/images/{image}?force=` | | [`RemovedImage`] |
//! | `POST /v1/images/{image}/tag` | [`TagImage`] | [`Image`] |
//! | `GET /v1/images/{image}/export` | | a tar archive of its root filesystem, chunked |
//! | `GET /v1/images/{image}/save` | | an OCI archive, chunked |
//! | `POST /v1/prune` | [`PruneImages`] | [`PrunedImages`] |
//! | WebSocket `/v1/pull` | [`PullImage`] | a stream that ends with `images` |
//! | `GET /v1/base-images` | | array of [`BaseImage`] |
//! | WebSocket `/v1/base-images/pull` | [`PullBaseImage`] | a stream that ends with `base_image` |
//! | WebSocket `/v1/import` | [`ImportImage`] | a stream that ends with `images` |
//! | `GET /v1/volumes` | | array of [`Volume`] |
//! | `POST /v1/volumes` | [`CreateVolume`] | 201, [`Volume`] |
//! | `GET /v1/volumes/{name}` | | [`Volume`] |
//! | `DELETE /v1/volumes/{name}` | | 204 |
//! | `POST /v1/volumes/{name}/resize` | [`ResizeVolume`] | [`Volume`] |
//! | `POST /v1/volumes/{name}/export` | [`ExportVolume`] | 204 |
//! | `GET /v1/events?since=&follow=` | | server-sent events, each an [`Event`] |
//! | `GET /v1/metrics` | | figures in the text format of Prometheus |
//! | `GET /v1/kernels` | | array of [`Kernel`] |
//! | `POST /v1/gc` | [`CollectGarbage`] | array of [`Leftover`] |
//! | `GET /v1/networks` | | array of [`NamedNetwork`] |
//! | `POST /v1/networks` | [`CreateNetwork`] | 201, [`NamedNetwork`] |
//! | `GET /v1/networks/{name}` | | [`NamedNetwork`] |
//! | `PUT /v1/networks/{name}` | [`NetworkPolicy`] | [`NamedNetwork`]; the policy is replaced whole |
//! | `DELETE /v1/networks/{name}` | | 204 |
//! | `POST /v1/sandboxes/{key}/snapshots` | [`CreateSnapshot`] | 201, [`Snapshot`] |
//! | `GET /v1/snapshots` | | array of [`Snapshot`], newest first |
//! | `GET /v1/snapshots/{snapshot}` | | [`Snapshot`] |
//! | `DELETE /v1/snapshots/{snapshot}` | | 204 |
//! | `POST /v1/shutdown` | | 202 |
//!
//! `{key}` is an id, a unique prefix of one, or a name; so is `{image}`, escaped to one segment of
//! the path. An archive that breaks off is not whole. Whatever fails answers with an
//! [`ErrorBody`]. What travels on a stream is told in [`stream`].

mod base_image;
pub mod client;
mod error;
mod event;
mod exec;
mod file;
mod host;
mod image;
mod named_network;
mod network;
#[cfg(feature = "openapi")]
pub mod openapi;
mod sandbox;
mod snapshot;
mod stats;
pub mod stream;
mod volume;

pub use base_image::{BaseFile, BaseImage, BasePreset, PullBaseImage, PulledBaseImage};
pub use client::{Client, ClientError, LogStream};
pub use error::{ErrorBody, ErrorReport, code};
pub use event::{CollectGarbage, Event, Kernel, Leftover};
pub use exec::{
    AttachRequest, ExecLimits, ExecRequest, ExitStatus, RunRequest, Session, TerminalSize,
};
pub use file::{
    ChangeKind, FileChange, FileInfo, FileKind, MakeDirectory, MoveFile, TREE_TYPE, UploadTo,
};
pub use host::{Acceleration, HostInfo, Version};
pub use image::{
    Image, ImageConfig, ImportImage, PruneImages, PrunedImages, PullImage, PullPolicy,
    RemovedImage, TagImage,
};
pub use named_network::{CreateNetwork, NamedNetwork, NetworkMember, WireGuard, WireGuardRequest};
pub use network::{
    Bandwidth, Network, NetworkMode, NetworkPolicy, NetworkProof, NetworkRequest, NetworkRule,
    PolicyMode, ProofOutcome, RuleAction, RulePorts, RuleProtocol,
};
pub use sandbox::{
    CreateSandbox, EngineKind, EnginePreference, InitSystem, MainCommand, Protection, Sandbox,
    SandboxState, StopSandbox, Timings, UpdateSandbox, WaitFor,
};
pub use snapshot::{AfterSnapshot, CreateSnapshot, Snapshot};
pub use stats::Stats;
pub use volume::{CreateVolume, ExportVolume, ResizeVolume, Volume, VolumeMount};

/// Header by which each side tells the other the version of Kiln it is.
///
/// The daemon refuses a request that carries another version than its own; one without the header
/// is taken as it is.
pub const VERSION_HEADER: &str = "x-kiln-version";

/// What a connection becomes that leads to a port of a guest: plain bytes both ways, each direction
/// ended by itself.
pub const PORT_PROTOCOL: &str = "kiln-port";
/// Header by which a request to create is told from its repetitions.
pub const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// Number of the contract, the `v1` of every path.
pub const API_VERSION: u32 = 1;
